// Who made a file, and who can read it: Ed25519 (RFC 8032), AES-256-GCM in chunks, and keys from
// passphrases (scrypt, RFC 7914) or key files (HKDF-SHA256, RFC 5869), all of them OpenSSL's.

template <auto release>
struct With {
  template <class T>
  void operator()(T *object) const {
    release(object);
  }
};
using PublicKey = std::unique_ptr<EVP_PKEY, With<EVP_PKEY_free>>;

// What OpenSSL did not do; its own list of errors is emptied, which others would find.
[[noreturn]] inline void refuse(const std::string &reason) {
  ERR_clear_error();
  throw Error(reason);
}

inline unsigned char *raw(char *data) { return reinterpret_cast<unsigned char *>(data); }
inline const unsigned char *raw(const char *data) {
  return reinterpret_cast<const unsigned char *>(data);
}

inline Secret read_key(const std::string &path) {
  constexpr std::size_t most = 1 << 16;
  Secret key(most + 1);
  int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ssize_t part = file < 0 ? -1 : 1;
  for (key.size = 0; part > 0 && key.size <= most; key.size += part > 0 ? part : 0)
    part = ::read(file, key.data.get() + key.size, most + 1 - key.size);
  std::string reason = std::strerror(errno);
  if (file >= 0) close(file);
  if (part < 0) throw Error("cannot read the key " + path + ": " + reason);
  if (key.size > most) throw Error(path + " is too large for a key");
  return key;
}

// A short name of a public key, to compare by eye.
inline std::string key_id(const std::string &key) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  if (!EVP_Digest(key.data(), key.size(), digest, nullptr, EVP_sha256(), nullptr))
    refuse("OpenSSL offers no SHA-256");
  std::string name;
  for (int i = 0; i < 8; i++) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", digest[i]);
    name += digits;
  }
  return name;
}

class TrustedKeys {
 public:
  explicit TrustedKeys(const Keys &keys) {
    for (const std::string &source : keys.trusted) {
      bool text = source.compare(0, 10, "-----BEGIN") == 0;
      std::string name = text ? "the trusted key" : source;
      Secret content = text ? Secret() : read_key(source);
      const char *pem = text ? source.data() : content.data.get();
      int size = static_cast<int>(text ? source.size() : content.size);
      std::unique_ptr<BIO, With<BIO_free_all>> memory(BIO_new_mem_buf(pem, size));
      auto no_passphrase = [](char *, int, int, void *) { return 0; };  // else it would ask for one
      PublicKey key(PEM_read_bio_PUBKEY(memory.get(), nullptr, no_passphrase, nullptr));
      std::string bytes(32, '\0');
      std::size_t length = bytes.size();
      if (!key) refuse(name + " is no public key in PEM form");
      if (EVP_PKEY_base_id(key.get()) != EVP_PKEY_ED25519 ||
          !EVP_PKEY_get_raw_public_key(key.get(), raw(&bytes[0]), &length))
        refuse(name + " is not an Ed25519 key");
      keys_.push_back(bytes);
    }
  }

  // Refuses what none of the keys has signed; with no keys, a signature that is not valid.
  void require(const std::string &field, const std::string &message) const {
    std::string signer = field.substr(0, 32);
    if (field == std::string(field.size(), '\0')) {
      if (!keys_.empty()) damaged("it is not signed, and trusted keys are given");
      return;
    }
    if (!keys_.empty() && std::find(keys_.begin(), keys_.end(), signer) == keys_.end())
      damaged("it is signed by key " + key_id(signer) + ", which is not among the trusted ones");
    PublicKey key(EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, raw(&signer[0]), 32));
    std::unique_ptr<EVP_MD_CTX, With<EVP_MD_CTX_free>> check(EVP_MD_CTX_new());
    if (!key || !check ||
        EVP_DigestVerifyInit(check.get(), nullptr, nullptr, nullptr, key.get()) != 1 ||
        EVP_DigestVerify(check.get(), raw(&field[32]), field.size() - 32, raw(message.data()),
                         message.size()) != 1) {
      ERR_clear_error();
      damaged("its signature by key " + key_id(signer) +
              " is not valid; the file was altered after it was signed");
    }
  }

 private:
  std::vector<std::string> keys_;
};

// Decrypts the members of one file.
class Cipher {
 public:
  Cipher(const Keys &keys, const Json &encryption, const std::string &manifest)
      : manifest_(plain_digest(manifest, 32)), key_(32) {
    if (encryption["cipher"].string() != kCipher) throw Error("the file's cipher is unknown");
    const std::string &kind = encryption["key"].string(), &hex = encryption["salt"].string();
    bool phrase = kind == "passphrase";
    if (!phrase && kind != "key-file") throw Error("the file's kind of key is unknown");
    if (hex.size() != 2 * kSaltBytes ||
        hex.find_first_not_of("0123456789abcdef") != std::string::npos)
      throw Error("the file's salt is no salt");
    if (phrase ? keys.passphrase.empty() : keys.key_file.empty())
      throw Error("the file is encrypted with " +
                  std::string(phrase ? "a passphrase" : "a key file") + ", which is not given");
    std::string salt;
    for (std::size_t i = 0; i < hex.size(); i += 2)
      salt += static_cast<char>(std::strtol(hex.substr(i, 2).c_str(), nullptr, 16));
    if (!(phrase ? from_passphrase(keys.passphrase, salt) : from_key_file(keys.key_file, salt)))
      refuse("OpenSSL cannot make the key");
  }

  Secret decrypted(std::size_t member, const char *stored, std::size_t size) const {
    constexpr std::size_t chunk = kChunkBytes, tag = kTagBytes;
    std::size_t count = std::max<std::size_t>(1, (size + chunk + tag - 1) / (chunk + tag));
    std::size_t plain = size - tag * count;
    if (size < tag * count || std::max<std::size_t>(1, (plain + chunk - 1) / chunk) != count)
      damaged("an encrypted member is cut off");
    std::unique_ptr<EVP_CIPHER_CTX, With<EVP_CIPHER_CTX_free>> context(EVP_CIPHER_CTX_new());
    Secret result(plain);
    std::string extra = manifest_ + packed({{plain, 8}});
    for (std::size_t i = 0; i < count; i++) {
      std::size_t part = std::min(chunk, plain - i * chunk);
      char *place = result.data.get() + i * chunk;
      const char *from = stored + i * (chunk + tag);
      // The stored bytes may be mapped: those that are copied here are authenticated and used.
      std::memcpy(place, from, part);
      std::string nonce = packed({{member, 4}, {i, 8}}), seal(from + part, tag);
      unsigned char none[16];
      int done = 0, length = static_cast<int>(part);
      if (!context ||
          !EVP_DecryptInit_ex(context.get(), EVP_aes_256_gcm(), nullptr, raw(key_.data.get()),
                              raw(nonce.data())) ||
          !EVP_DecryptUpdate(context.get(), nullptr, &done, raw(extra.data()),
                             static_cast<int>(extra.size())) ||
          (part && !EVP_DecryptUpdate(context.get(), raw(place), &done, raw(place), length)) ||
          !EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_GCM_SET_TAG, kTagBytes, &seal[0]) ||
          EVP_DecryptFinal_ex(context.get(), none, &done) <= 0)
        refuse("the file does not decrypt: the key or passphrase is another one, or it is altered");
    }
    return result;
  }

 private:
  bool from_passphrase(const std::string &passphrase, const std::string &salt) {
    return EVP_PBE_scrypt(passphrase.data(), passphrase.size(), raw(salt.data()), salt.size(),
                          kScryptN, kScryptR, kScryptP, kScryptMemory, raw(key_.data.get()),
                          key_.size) == 1;
  }

  bool from_key_file(const std::string &path, const std::string &salt) {
    Secret content = read_key(path);
    if (content.size < kKeyFileBytes)
      throw Error(path + " has " + std::to_string(content.size) + " bytes; a key file has " +
                  std::to_string(kKeyFileBytes) + " or more");
    std::unique_ptr<EVP_PKEY_CTX, With<EVP_PKEY_CTX_free>> context(
        EVP_PKEY_CTX_new_id(EVP_PKEY_HKDF, nullptr));
    const unsigned char *info = raw(kInfo);
    return context && EVP_PKEY_derive_init(context.get()) > 0 &&
           EVP_PKEY_CTX_set_hkdf_md(context.get(), EVP_sha256()) > 0 &&
           EVP_PKEY_CTX_set1_hkdf_salt(context.get(), raw(salt.data()), kSaltBytes) > 0 &&
           EVP_PKEY_CTX_set1_hkdf_key(context.get(), raw(content.data.get()),
                                      static_cast<int>(content.size)) > 0 &&
           EVP_PKEY_CTX_add1_hkdf_info(context.get(), info, sizeof kInfo - 1) > 0 &&
           EVP_PKEY_derive(context.get(), raw(key_.data.get()), &key_.size) > 0;
  }

  std::string manifest_;
  Secret key_;
};
