// Stands in for MLIR's header: the context is one pointer, made and freed by the library's own exported functions.
#pragma once

namespace mlir {
class DialectRegistry;

class MLIRContext {
 public:
  enum class Threading { DISABLED, ENABLED };
  explicit MLIRContext(Threading threading = Threading::ENABLED);
  ~MLIRContext();
  MLIRContext(const MLIRContext &) = delete;
  MLIRContext &operator=(const MLIRContext &) = delete;

 private:
  void *impl_;
};
}  // namespace mlir
