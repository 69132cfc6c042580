// Stands in for MLIR's header; the name alone is needed.
#pragma once

namespace mlir {
class DialectRegistry;
}  // namespace mlir
