// Stands in for MLIR's header, of which XLA's headers for saving programs need a name.
#pragma once

namespace mlir {
class DictionaryAttr;
}  // namespace mlir
