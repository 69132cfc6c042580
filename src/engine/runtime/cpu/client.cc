// XLA's CPU client behind C functions, which `mod.rs` declares and calls. build.rs compiles this file.
//
// The xla crate's own client reads the number of devices and the compiler's options only from the environment. Here they are
// arguments, so that each client has its own and nobody has to change the environment.
//
// A function that can fail returns null for success, or an error message that the caller frees with vnca_cpu_free_text. No
// exception leaves a function.
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/log_severity.h"
#include "absl/log/globals.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "xla/debug_options_flags.h"
#include "xla/ffi/execution_context.h"
#include "xla/hlo/builder/xla_computation.h"
#include "xla/literal.h"
#include "xla/pjrt/pjrt_client.h"
#include "xla/pjrt/pjrt_executable.h"
#include "xla/pjrt/plugin/xla_cpu/xla_cpu_pjrt_client.h"
#include "xla/service/hlo.pb.h"
#include "xla/tsl/util/command_line_flags.h"
#include "xla/xla_data.pb.h"

// `element_type` in mod.rs returns these numbers.
static_assert(xla::PRED == 1 && xla::S32 == 4 && xla::U8 == 6 && xla::U32 == 8 && xla::U64 == 9 && xla::F32 == 11 &&
              xla::BF16 == 16);

struct VncaCpuClient {
  // The state that custom calls find. Running programs refer to it until the client below is destroyed.
  xla::ExecuteContext context;
  xla::DebugOptions options;
  std::string name, version;
  std::unique_ptr<xla::PjRtClient> client;
};

namespace {

char *CopyText(const std::string &text) { return strdup(text.c_str()); }

// Runs `work` and turns a failure or an exception into a message.
template <typename Work>
char *ToMessage(Work work) {
  try {
    absl::Status status = work();
    return status.ok() ? nullptr : CopyText(std::string(status.message()));
  } catch (const std::exception &error) {
    return CopyText(error.what());
  } catch (...) {
    return CopyText("an exception without a message");
  }
}

// Sets the compiler's options; the user's flags override the defaults. At optimization level 1 programs compile in two thirds of
// the time of level 3 and run as fast, because they spend their time in XLA's own matmuls.
absl::Status ReadFlags(std::vector<std::string> flags, int devices, xla::DebugOptions *options) {
  *options = xla::DefaultDebugOptionsIgnoringFlags();
  options->set_xla_backend_optimization_level(1);
  options->set_xla_force_host_platform_device_count(devices);
  std::vector<tsl::Flag> known;
  xla::MakeDebugOptionsFlags(&known, options);
  // Removes the flags that it knows from `flags`.
  bool valid = tsl::Flags::Parse(flags, known);
  if (!flags.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("XLA has no flag ", absl::StrJoin(flags, ", ")));
  }
  if (!valid) return absl::InvalidArgumentError("a flag has a value of the wrong type");
  return absl::OkStatus();
}

}  // namespace

extern "C" {

void vnca_cpu_free_text(char *text) { free(text); }

// Checks that XLA knows these flags and that their values have the right types.
char *vnca_cpu_check_flags(const char *const *flags, size_t count) {
  return ToMessage([&] {
    xla::DebugOptions options;
    return ReadFlags(std::vector<std::string>(flags, flags + count), 1, &options);
  });
}

// Creates a client with this number of devices, unless the flags set another. Custom calls find `data` under `type_id`, unless
// that is 0.
char *vnca_cpu_open(size_t devices, const char *const *flags, size_t count, int64_t type_id, void *data,
                    VncaCpuClient **result) {
  return ToMessage([&] {
    // XLA reports on stderr what it does, and that its log is not set up. Warnings stay, unless the user asked for more or less.
    if (std::getenv("TF_CPP_MIN_LOG_LEVEL") == nullptr && absl::MinLogLevel() < absl::LogSeverityAtLeast::kWarning) {
      absl::SetMinLogLevel(absl::LogSeverityAtLeast::kWarning);
    }
    auto created = std::make_unique<VncaCpuClient>();
    absl::Status status = ReadFlags(std::vector<std::string>(flags, flags + count), devices, &created->options);
    if (!status.ok()) return status;
    if (type_id != 0) {
      status = created->context.ffi_context().Insert(xla::ffi::ExecutionContext::TypeId(type_id), data);
      if (!status.ok()) return status;
    }
    xla::CpuClientOptions options;
    options.asynchronous = false;
    options.cpu_device_count = created->options.xla_force_host_platform_device_count();
    auto client = xla::GetXlaPjrtCpuClient(std::move(options));
    if (!client.ok()) return client.status();
    created->client = *std::move(client);
    created->name = std::string(created->client->platform_name());
    created->version = std::string(created->client->platform_version());
    *result = created.release();
    return absl::OkStatus();
  });
}

void vnca_cpu_close(VncaCpuClient *client) { delete client; }

size_t vnca_cpu_device_count(const VncaCpuClient *client) { return client->client->addressable_device_count(); }
const char *vnca_cpu_name(const VncaCpuClient *client) { return client->name.c_str(); }
const char *vnca_cpu_version(const VncaCpuClient *client) { return client->version.c_str(); }

// Compiles a serialized HloModuleProto for the first `replicas` devices.
char *vnca_cpu_compile(const VncaCpuClient *client, const void *module, size_t size, size_t replicas,
                       xla::PjRtLoadedExecutable **result) {
  return ToMessage([&] {
    xla::HloModuleProto proto;
    if (!proto.ParseFromArray(module, size)) return absl::InvalidArgumentError("the module is not an HloModuleProto");
    auto devices = client->client->addressable_devices();
    if (replicas < 1 || replicas > devices.size()) {
      return absl::InvalidArgumentError(absl::StrCat(replicas, " replicas for ", devices.size(), " devices"));
    }
    xla::CompileOptions options;
    auto &build = options.executable_build_options;
    build.set_num_replicas(replicas);
    build.set_num_partitions(1);
    xla::DeviceAssignment assignment(replicas, 1);
    for (size_t r = 0; r < replicas; ++r) assignment(r, 0) = devices[r]->id();
    build.set_device_assignment(assignment);
    *build.mutable_debug_options() = client->options;
    auto compiled = client->client->CompileAndLoad(xla::XlaComputation(std::move(proto)), options);
    if (!compiled.ok()) return compiled.status();
    *result = compiled->release();
    return absl::OkStatus();
  });
}

void vnca_cpu_free_executable(xla::PjRtLoadedExecutable *executable) { delete executable; }

// Runs a program. `arguments` holds `replicas` rows of `inputs` buffers; `results` receives `replicas` rows of `outputs`.
char *vnca_cpu_execute(const VncaCpuClient *client, const xla::PjRtLoadedExecutable *executable,
                       xla::PjRtBuffer *const *arguments, size_t replicas, size_t inputs, size_t outputs,
                       xla::PjRtBuffer **results) {
  return ToMessage([&] {
    std::vector<std::vector<xla::PjRtBuffer *>> rows;
    for (size_t r = 0; r < replicas; ++r) rows.emplace_back(arguments + r * inputs, arguments + (r + 1) * inputs);
    xla::ExecuteOptions options;
    options.strict_shape_checking = false;
    options.context = &client->context;
    auto produced = executable->Execute(rows, options);
    if (!produced.ok()) return produced.status();
    if (produced->size() != replicas) {
      return absl::InternalError(absl::StrCat("results of ", produced->size(), " replicas, not ", replicas));
    }
    for (auto &row : *produced) {
      if (row.size() != outputs) return absl::InternalError(absl::StrCat(row.size(), " results, not ", outputs));
    }
    for (auto &row : *produced) {
      for (auto &buffer : row) *results++ = buffer.release();
    }
    return absl::OkStatus();
  });
}

// Copies a row-major array to a device.
char *vnca_cpu_put(const VncaCpuClient *client, size_t device, const void *data, int element_type, const int64_t *dims,
                   size_t rank, xla::PjRtBuffer **result) {
  return ToMessage([&] {
    auto devices = client->client->addressable_devices();
    if (device >= devices.size()) return absl::InvalidArgumentError(absl::StrCat("there is no device ", device));
    auto memory = devices[device]->default_memory_space();
    if (!memory.ok()) return memory.status();
    auto buffer = client->client->BufferFromHostBuffer(
        data, static_cast<xla::PrimitiveType>(element_type), absl::MakeConstSpan(dims, rank), std::nullopt,
        xla::PjRtClient::HostBufferSemantics::kImmutableOnlyDuringCall, [] {}, *memory, /*device_layout=*/nullptr);
    if (!buffer.ok()) return buffer.status();
    *result = buffer->release();
    return absl::OkStatus();
  });
}

// Waits for an array and copies its `size` bytes to `data`.
char *vnca_cpu_get(xla::PjRtBuffer *buffer, void *data, size_t size) {
  return ToMessage([&] {
    auto literal = buffer->ToLiteralSync();
    if (!literal.ok()) return literal.status();
    size_t found = (*literal)->size_bytes();
    if (found != size) return absl::InternalError(absl::StrCat("an array of ", found, " bytes, not ", size));
    if (size > 0) memcpy(data, (*literal)->untyped_data(), size);
    return absl::OkStatus();
  });
}

void vnca_cpu_free_buffer(xla::PjRtBuffer *buffer) { delete buffer; }

}  // extern "C"
