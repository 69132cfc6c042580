// Functions that the xla crate refers to and the library's package does not export. They load PJRT plugins through
// the crate; vnca loads plugins itself, through the C API, so these only have to say so.
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "xla/pjrt/pjrt_api.h"

namespace pjrt {
namespace {
absl::Status Unavailable() { return absl::UnimplementedError("plugins are not loaded through this library"); }
}  // namespace

absl::StatusOr<const PJRT_Api *> PjrtApi(absl::string_view) { return Unavailable(); }
absl::StatusOr<const PJRT_Api *> LoadPjrtPlugin(absl::string_view, absl::string_view) { return Unavailable(); }
absl::StatusOr<bool> IsPjrtPluginInitialized(absl::string_view) { return Unavailable(); }
absl::Status InitializePjrtPlugin(absl::string_view) { return Unavailable(); }
}  // namespace pjrt
