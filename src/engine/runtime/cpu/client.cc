// XLA's CPU client behind C functions, which `mod.rs` declares and calls. build.rs compiles this file.
//
// The xla crate's own client reads the number of devices and the compiler's options only from the environment. Here they are
// arguments, so that each client has its own and nobody has to change the environment.
//
// A function that can fail returns null for success, or an error message that the caller frees with vnca_cpu_free_text. No
// exception leaves a function.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/log_severity.h"
#include "absl/cleanup/cleanup.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/log/globals.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
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

// tools/setup writes this header. With another XLA library programs cannot be saved.
#if __has_include("ynnpack/include/ynnpack.h")
#include "ynnpack/include/ynnpack.h"
#endif
#ifdef VNCA_XLA_SHIM
#include "xla/backends/cpu/runtime/custom_call_thunk.h"
#include "xla/backends/cpu/runtime/onednn/onednn_op_thunk.h"
#include "xla/backends/cpu/runtime/thunk.h"
#include "xla/hlo/ir/hlo_instruction.h"
#include "xla/hlo/ir/hlo_module.h"
#include "xla/pjrt/cpu/cpu_client.h"
#include "xla/service/buffer_assignment.h"
#include "xla/service/cpu/backend_config.pb.h"
#include "xla/service/cpu/cpu_executable.h"
#include "xla/service/custom_call_status_internal.h"
#include "xla/service/custom_call_target_registry.h"
#endif

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

using LoadedPointer = std::unique_ptr<xla::PjRtLoadedExecutable>;

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

// Returns the options for compiling or loading a program for the first `replicas` devices.
absl::StatusOr<xla::CompileOptions> MakeOptions(const VncaCpuClient &client, size_t replicas) {
  auto devices = client.client->addressable_devices();
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
  *build.mutable_debug_options() = client.options;
  return options;
}

// Returns the parts of a module that decide what its compiled program computes.
//
// XLA numbers all computations of a process, those that its compiler makes included, and names them by their numbers. So one
// program has other numbers and names after other programs were compiled or were only loaded.
std::string ToCanonicalBytes(xla::HloModuleProto module) {
  absl::flat_hash_map<int64_t, int64_t> numbers;
  for (const auto &computation : module.computations()) numbers.emplace(computation.id(), numbers.size() + 1);
  auto renumber = [&](int64_t id) {
    auto found = numbers.find(id);
    return found == numbers.end() ? id : found->second;
  };
  // The upper half of an instruction's number is that of its computation.
  auto renumber_instruction = [&](int64_t id) { return renumber(id >> 32) << 32 | (id & 0xFFFFFFFF); };
  for (auto &computation : *module.mutable_computations()) {
    computation.clear_name();
    computation.set_id(renumber(computation.id()));
    computation.set_root_id(renumber_instruction(computation.root_id()));
    for (auto &instruction : *computation.mutable_instructions()) {
      instruction.clear_name();
      instruction.set_id(renumber_instruction(instruction.id()));
      for (auto &id : *instruction.mutable_operand_ids()) id = renumber_instruction(id);
      for (auto &id : *instruction.mutable_control_predecessor_ids()) id = renumber_instruction(id);
      for (auto &id : *instruction.mutable_called_computation_ids()) id = renumber(id);
    }
  }
  module.clear_id();
  module.clear_name();
  module.clear_entry_computation_name();
  module.set_entry_computation_id(renumber(module.entry_computation_id()));
  return module.SerializeAsString();
}

#ifdef VNCA_XLA_SHIM
// Saving programs.
//
// XLA saves a program as its thunks, which are the steps that its runtime takes, and the machine code of the kernels. It takes
// every thunk of the kind custom call for a CustomCallThunk and reads its fields. But a OneDnnOpThunk is of this kind too, and is
// no CustomCallThunk. So before XLA saves a program, each OneDnnOpThunk is exchanged for a CustomCallThunk that stands in for it,
// and after XLA has loaded a program, each stand-in for a OneDnnOpThunk. Both use the same buffers in the same order, so the order
// that XLA computed for the thunks holds for either. The rest is in the program's HLO module, which XLA saves too.

using ThunkPointer = std::unique_ptr<xla::cpu::Thunk>;
using Calls = absl::flat_hash_map<std::string, const xla::HloInstruction *>;

// The name of a stand-in's function.
constexpr char kStandIn[] = "vnca.onednn-stand-in";

// XLA makes no CustomCallThunk without a function. This one is never called, because no program with stand-ins is run.
void CallStandIn(void *, const void **, const char *, size_t, XlaCustomCallStatus *status) {
  status->message = "a stand-in for a call of oneDNN was run";
}

absl::StatusOr<xla::cpu::CpuExecutable *> GetCpuExecutable(const xla::PjRtLoadedExecutable &executable) {
  auto *unloaded = dynamic_cast<xla::PjRtCpuExecutable *>(executable.GetExecutable());
  auto *cpu = unloaded ? dynamic_cast<xla::cpu::CpuExecutable *>(unloaded->cpu_executable().get()) : nullptr;
  if (cpu == nullptr || !cpu->has_thunks()) return absl::UnimplementedError("the program is of an unknown kind");
  return cpu;
}

// Returns a program's custom calls by the names that XLA gives to their OneDnnOpThunks.
Calls FindCalls(const xla::HloModule &module) {
  Calls found;
  for (const auto *computation : module.computations()) {
    for (const auto *instruction : computation->instructions()) {
      if (instruction->opcode() != xla::HloOpcode::kCustomCall) continue;
      found[absl::StrCat(instruction->name(), instruction->custom_call_target())] = instruction;
    }
  }
  return found;
}

// Returns the call that a OneDnnOpThunk or its stand-in was made from.
absl::StatusOr<const xla::HloInstruction *> FindCall(const Calls &calls, const xla::cpu::Thunk &thunk) {
  auto found = calls.find(thunk.info().op_name);
  if (found != calls.end()) return found->second;
  return absl::UnimplementedError(absl::StrCat("the program has no custom call ", thunk.info().op_name));
}

// Calls `work` with the address of every thunk, nested ones included.
absl::Status ForEachThunk(const xla::cpu::ThunkSequence &thunks,
                          absl::FunctionRef<absl::Status(ThunkPointer &)> work) {
  // XLA passes sequences as constants, but no sequence is one: they are fields of the program, which is not constant.
  for (ThunkPointer &thunk : const_cast<xla::cpu::ThunkSequence &>(thunks)) {
    for (const auto &nested : thunk->nested_thunks()) {
      absl::Status status = ForEachThunk(*nested.second, work);
      if (!status.ok()) return status;
    }
    absl::Status status = work(thunk);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// Returns the stand-in of a OneDnnOpThunk.
absl::StatusOr<ThunkPointer> MakeStandIn(const xla::cpu::Thunk &thunk, const xla::HloInstruction &call,
                                         const xla::BufferAssignment &assignment) {
  xla::cpu::CustomCallThunk::OpBuffers buffers;
  for (const auto *operand : call.operands()) {
    auto slice = assignment.GetUniqueSlice(operand, {});
    if (!slice.ok()) return slice.status();
    buffers.arguments_buffers.push_back(*slice);
    buffers.arguments_shapes.push_back(operand->shape());
  }
  buffers.is_tuple_result = call.shape().IsTuple();
  for (int64_t i = 0, count = buffers.is_tuple_result ? call.shape().tuple_shapes().size() : 1; i < count; ++i) {
    auto slice = assignment.GetUniqueSlice(&call, buffers.is_tuple_result ? xla::ShapeIndex{i} : xla::ShapeIndex{});
    if (!slice.ok()) return slice.status();
    buffers.results_buffers.push_back(*slice);
    buffers.results_shapes.push_back(buffers.is_tuple_result ? call.shape().tuple_shapes(i) : call.shape());
  }
  auto made = xla::cpu::CustomCallThunk::Create(thunk.info(), kStandIn, std::move(buffers), "",
                                                xla::CustomCallApiVersion::API_VERSION_STATUS_RETURNING_UNIFIED);
  if (!made.ok()) return made.status();
  if ((*made)->buffer_uses() != thunk.buffer_uses()) {
    return absl::UnimplementedError(absl::StrCat(call.name(), " has other buffers than its operands and results"));
  }
  return ThunkPointer(*std::move(made));
}

// Returns the OneDnnOpThunk that a stand-in was made from.
absl::StatusOr<ThunkPointer> MakeOneDnnThunk(const xla::cpu::CustomCallThunk &stand_in, const xla::HloInstruction &call) {
  auto parsed = call.backend_config<xla::cpu::BackendConfig>();
  if (!parsed.ok()) return parsed.status();
  const std::string &target = call.custom_call_target();
  xla::cpu::OneDnnOpThunk::OneDnnOpConfig config;
  if (target == "__onednn$matmul") {
    config = parsed->onednn_matmul_config();
  } else if (target == "__onednn$convolution") {
    config = parsed->onednn_conv_config();
  } else {
    return absl::UnimplementedError(absl::StrCat("cannot load calls of ", target));
  }
  const auto &own = stand_in.op_buffers();
  xla::cpu::OneDnnOpThunk::OpBuffers buffers = {own.arguments_buffers, own.arguments_shapes, own.results_buffers,
                                                own.results_shapes, own.is_tuple_result};
  auto made = xla::cpu::OneDnnOpThunk::Create(target, stand_in.info(), std::move(buffers), std::move(config));
  if (!made.ok()) return made.status();
  return ThunkPointer(*std::move(made));
}

// Saves a program that nobody runs meanwhile.
absl::StatusOr<std::string> Save(const xla::PjRtLoadedExecutable &executable) {
  auto program = GetCpuExecutable(executable);
  if (!program.ok()) return program.status();
  const auto &thunks = (*program)->thunks().thunk_sequence();
  Calls calls = FindCalls((*program)->module());
  // Where each OneDnnOpThunk belongs.
  std::vector<std::pair<ThunkPointer *, ThunkPointer>> exchanged;
  auto put_back = absl::MakeCleanup([&] {
    for (auto &[place, thunk] : exchanged) *place = std::move(thunk);
  });
  absl::Status status = ForEachThunk(thunks, [&](ThunkPointer &thunk) -> absl::Status {
    if (dynamic_cast<xla::cpu::OneDnnOpThunk *>(thunk.get()) == nullptr) return absl::OkStatus();
    auto call = FindCall(calls, *thunk);
    if (!call.ok()) return call.status();
    auto stand_in = MakeStandIn(*thunk, **call, (*program)->buffer_assignment());
    if (!stand_in.ok()) return stand_in.status();
    std::swap(thunk, *stand_in);
    exchanged.emplace_back(&thunk, *std::move(stand_in));
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return executable.SerializeExecutable();
}

// Loads a program as XLA saved it. XLA logs as an error that this processor lacks the features prefer-no-gather and
// prefer-no-scatter. It compiled the program for them itself: they are no features, but preferences of LLVM for the processor.
absl::StatusOr<LoadedPointer> LoadQuietly(xla::PjRtClient &client, absl::string_view saved, xla::CompileOptions options) {
  // The level belongs to the process. Of two threads, the second would restore the first one's.
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);
  absl::LogSeverityAtLeast level = absl::MinLogLevel();
  auto restore = absl::MakeCleanup([&] { absl::SetMinLogLevel(level); });
  // Whoever wants to see information sees these messages too.
  if (level >= absl::LogSeverityAtLeast::kWarning) absl::SetMinLogLevel(absl::LogSeverityAtLeast::kFatal);
  return client.LoadSerializedExecutable(saved, std::move(options), xla::LoadOptions());
}

absl::StatusOr<LoadedPointer> Load(const VncaCpuClient &client, absl::string_view saved, xla::CompileOptions options) {
  auto loaded = LoadQuietly(*client.client, saved, std::move(options));
  if (!loaded.ok()) return loaded.status();
  auto program = GetCpuExecutable(**loaded);
  if (!program.ok()) return program.status();
  Calls calls = FindCalls((*program)->module());
  absl::Status status = ForEachThunk((*program)->thunks().thunk_sequence(), [&](ThunkPointer &thunk) -> absl::Status {
    auto *stand_in = dynamic_cast<xla::cpu::CustomCallThunk *>(thunk.get());
    if (stand_in == nullptr || stand_in->target_name() != kStandIn) return absl::OkStatus();
    auto call = FindCall(calls, *thunk);
    if (!call.ok()) return call.status();
    auto made = MakeOneDnnThunk(*stand_in, **call);
    if (!made.ok()) return made.status();
    thunk = *std::move(made);
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return loaded;
}

void RegisterStandIn() {
  xla::CustomCallTargetRegistry::Global()->Register(kStandIn, reinterpret_cast<void *>(CallStandIn), "Host");
}

size_t CountThreads(xla::PjRtClient &client) {
  auto *cpu = dynamic_cast<xla::PjRtCpuClient *>(&client);
  return cpu == nullptr ? 0 : cpu->eigen_intraop_pool()->NumThreads();
}
#else
absl::StatusOr<std::string> Save(const xla::PjRtLoadedExecutable &) {
  return absl::UnimplementedError("programs of this XLA library cannot be saved");
}

absl::StatusOr<LoadedPointer> Load(const VncaCpuClient &, absl::string_view, xla::CompileOptions) {
  return absl::UnimplementedError("programs of this XLA library cannot be loaded");
}

void RegisterStandIn() {}

size_t CountThreads(xla::PjRtClient &) { return 0; }
#endif

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
    RegisterStandIn();
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

// Returns the number of threads that the compiler divides work for, or 0 if it is unknown.
size_t vnca_cpu_thread_count(const VncaCpuClient *client) { return CountThreads(*client->client); }

// Returns the path of the XLA library, or null if it is unknown.
const char *vnca_cpu_library() {
  Dl_info info;
  return dladdr(reinterpret_cast<void *>(&xla::GetXlaPjrtCpuClient), &info) != 0 ? info.dli_fname : nullptr;
}

// Compiles a serialized HloModuleProto for the first `replicas` devices.
char *vnca_cpu_compile(const VncaCpuClient *client, const void *module, size_t size, size_t replicas,
                       xla::PjRtLoadedExecutable **result) {
  return ToMessage([&] {
    xla::HloModuleProto proto;
    if (!proto.ParseFromArray(module, size)) return absl::InvalidArgumentError("the module is not an HloModuleProto");
    auto options = MakeOptions(*client, replicas);
    if (!options.ok()) return options.status();
    auto compiled = client->client->CompileAndLoad(xla::XlaComputation(std::move(proto)), *std::move(options));
    if (!compiled.ok()) return compiled.status();
    *result = compiled->release();
    return absl::OkStatus();
  });
}

// Returns bytes that are equal for modules that differ only in numbers and names.
char *vnca_cpu_canonical_module(const void *module, size_t size, const std::string **result) {
  return ToMessage([&] {
    xla::HloModuleProto proto;
    if (!proto.ParseFromArray(module, size)) return absl::InvalidArgumentError("the module is not an HloModuleProto");
    *result = new std::string(ToCanonicalBytes(std::move(proto)));
    return absl::OkStatus();
  });
}

// Saves a program. Nobody runs it before this function returns.
char *vnca_cpu_save(const xla::PjRtLoadedExecutable *executable, const std::string **result) {
  return ToMessage([&] {
    auto saved = Save(*executable);
    if (!saved.ok()) return saved.status();
    *result = new std::string(*std::move(saved));
    return absl::OkStatus();
  });
}

const char *vnca_cpu_bytes(const std::string *bytes, size_t *size) {
  *size = bytes->size();
  return bytes->data();
}

void vnca_cpu_free_bytes(const std::string *bytes) { delete bytes; }

// Loads a program that vnca_cpu_save saved with this library on this kind of processor, for as many replicas.
char *vnca_cpu_load(const VncaCpuClient *client, const char *data, size_t size, size_t replicas,
                    xla::PjRtLoadedExecutable **result) {
  return ToMessage([&] {
    auto options = MakeOptions(*client, replicas);
    if (!options.ok()) return options.status();
    auto loaded = Load(*client, absl::string_view(data, size), *std::move(options));
    if (!loaded.ok()) return loaded.status();
    *result = loaded->release();
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
