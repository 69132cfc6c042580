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

// The library asks this while it is loaded, before any of our code runs and whatever the log level is, and announces on
// stderr that TensorFlow's own operations use oneDNN. None of them is used here (XLA's calls of oneDNN do not ask), so
// the program's answer takes the place of the library's, which is the one that speaks.
namespace tensorflow {
bool IsMKLEnabled() { return false; }
}  // namespace tensorflow
