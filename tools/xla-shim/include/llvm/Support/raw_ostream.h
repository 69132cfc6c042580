// Stands in for LLVM's header, which the library's package leaves out. Only what printing a module needs.
//
// Hidden, as every function that a stand-in defines: without optimisation it is a symbol of the program, and one that is seen
// would take the place of the library's own function of this name, whose class is another.
#pragma once
#include <string>

namespace llvm {
class __attribute__((visibility("hidden"))) raw_string_ostream {
 public:
  explicit raw_string_ostream(std::string &text) : text_(text) {}
  raw_string_ostream &operator<<(const std::string &more) {
    text_ += more;
    return *this;
  }
  void flush() {}

 private:
  std::string &text_;
};
}  // namespace llvm
