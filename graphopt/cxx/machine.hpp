// Where a processor shows a feature: leaf, subleaf, register of CPUID and bits of XCR0 on x86-64, an
// entry of the auxiliary vector elsewhere; and the bit.
struct Feature {
  const char *name;
  unsigned where, subleaf, which, saved, bit;
};

@FEATURES@

inline bool offered(const Feature &feature) {
#if defined(__x86_64__)
  unsigned found[4] = {0}, saved = 0, high;
  if (__get_cpuid(1, &found[0], &found[1], &found[2], &found[3]) && (found[2] >> 27 & 1)) {
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  }
  if (!__get_cpuid_count(feature.where, feature.subleaf, &found[0], &found[1], &found[2], &found[3]))
    return false;
  return (found[feature.which] & feature.bit) && (saved & feature.saved) == feature.saved;
#else
  return getauxval(feature.where) & feature.bit;
#endif
}

// Why code for this architecture with these features cannot run here; empty if it can.
inline std::string unfit(const Json &entry) {
  if (entry["device"].kind != Json::kNull) return "the program is for a device, which needs Python";
  if (entry["architecture"].string() != kArchitecture)
    return "the program is for " + entry["architecture"].string() + ", this is " + kArchitecture;
  for (const Json &wanted : entry["features"].list()) {
    bool found = false;
    for (const Feature &feature : kFeatures) found |= wanted.string() == feature.name && offered(feature);
    if (!found) return "this processor lacks " + wanted.string();
#if defined(__x86_64__)
    // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA: for all threads of the process from now on.
    if (wanted.string() == "amx-tile" && syscall(SYS_arch_prctl, 0x1023, 18))
      return "the system does not permit tile registers";
#endif
  }
  return "";
}
