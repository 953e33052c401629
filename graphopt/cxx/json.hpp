// A value of JSON, as far as a manifest needs it.
struct Json {
  enum Kind { kNull, kFlag, kNumber, kText, kList, kObject };

  Kind kind = kNull;
  std::string text;  // of a string or a number; "true" or "false"
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members;

  const Json &operator[](const char *name) const {
    for (const auto &member : members)
      if (member.first == name) return member.second;
    throw Error(std::string("the manifest has no ") + name);
  }
  const std::string &string() const { return expect(kText, "a string").text; }
  const std::vector<Json> &list() const { return expect(kList, "a list").items; }
  bool flag() const { return expect(kFlag, "true or false").text == "true"; }

  std::uint64_t integer(std::uint64_t high) const {
    const std::string &digits = expect(kNumber, "a number").text;
    bool plain = digits.find_first_not_of("0123456789") == std::string::npos && digits.size() < 19;
    std::uint64_t value = plain ? std::strtoull(digits.c_str(), nullptr, 10) : 0;
    if (!plain || value > high) throw Error("the manifest has a number out of range");
    return value;
  }

 private:
  const Json &expect(Kind wanted, const char *what) const {
    if (kind != wanted) throw Error(std::string("the manifest has something else than ") + what);
    return *this;
  }
};

// Reads what graphopt writes: no spaces, names in order, so that none is there twice.
class JsonReader {
 public:
  explicit JsonReader(std::string text) : text_(std::move(text)) {}

  Json read() {
    Json value = read(0);
    if (at_ != text_.size()) fail();
    return value;
  }

 private:
  Json read(int depth) {
    Json value;
    if (depth > 64) fail();
    switch (text_[at_]) {
      case '{':
        value.kind = Json::kObject;
        list('}', [&] {
          std::string name = string();
          if (!value.members.empty() && value.members.back().first >= name) fail();
          expect(':');
          value.members.emplace_back(std::move(name), read(depth + 1));
        });
        break;
      case '[':
        value.kind = Json::kList;
        list(']', [&] { value.items.push_back(read(depth + 1)); });
        break;
      case '"': value.kind = Json::kText, value.text = string(); break;
      case 'n': word("null"); break;
      case 't': value.kind = Json::kFlag, value.text = word("true"); break;
      case 'f': value.kind = Json::kFlag, value.text = word("false"); break;
      default: number(value);
    }
    return value;
  }

  [[noreturn]] void fail() { throw Error("the manifest is not readable JSON"); }
  void expect(char c) {
    if (at_ >= text_.size() || text_[at_++] != c) fail();
  }
  const char *word(const char *expected) {
    for (const char *c = expected; *c; c++) expect(*c);
    return expected;
  }
  template <class Item>
  void list(char end, Item item) {
    at_++;
    if (text_[at_] != end) {  // behind the last character there is a 0
      for (item(); text_[at_] == ','; item()) at_++;
    }
    expect(end);
  }
  void number(Json &value) {
    std::size_t end = std::min(text_.find_first_not_of("+-.0123456789eE", at_), text_.size());
    value.kind = Json::kNumber;
    value.text = text_.substr(at_, end - at_);
    if (value.text.empty()) fail();
    at_ = end;
  }
  std::string string() {
    std::string result;
    expect('"');
    while (text_[at_] != '"') {
      if (static_cast<unsigned char>(text_[at_]) < ' ') fail();  // the end, too
      result += text_[at_] == '\\' ? escaped() : text_[at_];
      at_++;
    }
    at_++;
    return result;
  }
  char escaped() {
    static const std::string names = "\"\\/bfnrt", values = "\"\\/\b\f\n\r\t";
    std::size_t which = names.find(text_[++at_]);
    if (which != std::string::npos) return values[which];
    // Only for control characters: the manifest is UTF-8.
    std::string digits = text_.substr(at_, 5);
    if (digits.size() != 5 || digits.compare(0, 3, "u00") || digits[3] > '1' || digits[3] < '0' ||
        !std::isxdigit(static_cast<unsigned char>(digits[4])))
      fail();
    at_ += 4;
    return static_cast<char>(std::strtol(digits.c_str() + 1, nullptr, 16));
  }

  std::string text_;
  std::size_t at_ = 0;
};
