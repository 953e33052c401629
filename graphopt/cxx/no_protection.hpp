// Without OpenSSL, what needs it is refused.

class TrustedKeys {
 public:
  explicit TrustedKeys(const Keys &keys) {
    if (!keys.trusted.empty())
      throw Error("signatures are checked where GRAPHOPT_OPENSSL is defined before graphopt.hpp, "
                  "and libcrypto linked (-lcrypto)");
  }
  void require(const std::string &, const std::string &) const {}
};

class Cipher {
 public:
  Cipher(const Keys &, const Json &, const std::string &) {
    throw Error("the file is encrypted; such are opened where GRAPHOPT_OPENSSL is defined before "
                "graphopt.hpp, and libcrypto linked (-lcrypto)");
  }
  Secret decrypted(std::size_t, const char *, std::size_t) const { return {}; }
};
