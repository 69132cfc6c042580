// A PJRT plugin for the CPU whose collectives work between processes, for tests of programs that run on several hosts.
//
// The CPU plugins in the package indexes know one process only. XLA's CPU client takes any implementation of collectives, but
// the library has none between processes: here is a small one on Gloo. The library does not export the C functions of XLA's
// own plugins either: here are those that vnca calls, and no others.
//
// Options of the client: num_devices (of this process), node_id, num_nodes.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/types/span.h"
#include "xla/backends/cpu/collectives/cpu_collectives.h"
#include "xla/hlo/builder/xla_computation.h"
#include "xla/hlo/ir/hlo_module.h"
#include "xla/literal.h"
#include "xla/pjrt/c/pjrt_c_api.h"
#include "xla/pjrt/pjrt_client.h"
#include "xla/pjrt/pjrt_executable.h"
#include "xla/pjrt/plugin/xla_cpu/xla_cpu_pjrt_client.h"
#include "xla/pjrt/proto/compile_options.pb.h"
#include "xla/service/hlo.pb.h"
#include "xla/shape_util.h"

#include <gloo/allgather.h>
#include <gloo/alltoall.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/store.h>
#include <gloo/transport/tcp/device.h>

namespace xla {
// The function's own header needs headers of MLIR, which the library comes without.
absl::Status ParseMlirModuleStringAndConvertToXlaComputation(absl::string_view text, XlaComputation &computation,
                                                             bool use_tuple_args, bool return_tuple);
}  // namespace xla

struct PJRT_Error {
  absl::Status status;
};

struct PJRT_DeviceDescription {
  int id = 0, process = 0;
  // Null for a device of another process.
  xla::PjRtDevice *own = nullptr;
};

struct PJRT_Device : PJRT_DeviceDescription {};

struct PJRT_Client {
  std::unique_ptr<xla::PjRtClient> client;
  std::string name, version;
  int process = 0;
  std::vector<PJRT_Device> storage;
  std::vector<PJRT_Device *> devices, own;
};

struct PJRT_Executable {
  std::shared_ptr<xla::PjRtLoadedExecutable> program;
};

struct PJRT_LoadedExecutable : PJRT_Executable {
  std::vector<PJRT_Device *> devices;
};

struct PJRT_Buffer {
  std::unique_ptr<xla::PjRtBuffer> buffer;
};

struct PJRT_SerializedExecutable {
  std::string bytes;
};

namespace {

// How long a process waits for the others, which may be compiling. The connection to a process that ends breaks at once.
constexpr auto kTimeout = std::chrono::minutes(10);

// The store of the caller, below a prefix. Gloo wants exceptions for errors.
class Store : public gloo::rendezvous::Store {
 public:
  Store(const PJRT_Client_Create_Args &caller, std::string prefix) : caller_(caller), prefix_(std::move(prefix)) {}

  Store At(const std::string &prefix) const { return Store(caller_, prefix_ + prefix); }

  void set(const std::string &key, const std::vector<char> &value) override {
    std::string name = prefix_ + key;
    PJRT_KeyValuePutCallback_Args args = {PJRT_KeyValuePutCallback_Args_STRUCT_SIZE};
    args.key = name.data(), args.key_size = name.size();
    args.value = value.data(), args.value_size = value.size();
    args.callback_error = &error_, args.user_arg = caller_.kv_put_user_arg;
    Check(caller_.kv_put_callback(&args));
  }

  std::vector<char> get(const std::string &key) override {
    std::string name = prefix_ + key;
    PJRT_KeyValueGetCallback_Args args = {PJRT_KeyValueGetCallback_Args_STRUCT_SIZE};
    args.key = name.data(), args.key_size = name.size();
    args.timeout_in_ms = std::chrono::milliseconds(kTimeout).count();
    args.callback_error = &error_, args.user_arg = caller_.kv_get_user_arg;
    Check(caller_.kv_get_callback(&args));
    std::vector<char> value(args.value, args.value + args.value_size);
    args.value_deleter_callback(args.value);
    return value;
  }

  void wait(const std::vector<std::string> &keys) override {
    for (const auto &key : keys) get(key);
  }

 private:
  static void Check(PJRT_Error *error) {
    if (error == nullptr) return;
    std::string message(error->status.message());
    delete error;
    throw std::runtime_error(message);
  }

  static PJRT_Error *MakeError(PJRT_Error_Code code, const char *message, size_t size) {
    return new PJRT_Error{absl::Status(static_cast<absl::StatusCode>(code), absl::string_view(message, size))};
  }

  PJRT_CallbackError error_ = MakeError;
  PJRT_Client_Create_Args caller_;
  std::string prefix_;
};

// Runs `work`, which may throw, and returns its status.
template <typename Work>
absl::Status Guard(Work work) {
  try {
    return work();
  } catch (const std::exception &error) {
    return absl::InternalError(error.what());
  } catch (...) {
    return absl::InternalError("an exception without a message");
  }
}

template <typename T>
void ReduceRows(xla::ReductionKind kind, const char *bytes, size_t rows, size_t stride, size_t count, void *out) {
  auto *row = reinterpret_cast<const T *>(bytes);
  auto *total = static_cast<T *>(out);
  std::copy(row, row + count, total);
  for (size_t r = 1; r < rows; ++r) {
    row += stride;
    for (size_t i = 0; i < count; ++i) {
      switch (kind) {
        case xla::ReductionKind::SUM: total[i] = static_cast<T>(total[i] + row[i]); break;
        case xla::ReductionKind::PRODUCT: total[i] = static_cast<T>(total[i] * row[i]); break;
        case xla::ReductionKind::MIN: total[i] = std::min(total[i], row[i]); break;
        case xla::ReductionKind::MAX: total[i] = std::max(total[i], row[i]); break;
      }
    }
  }
}

// Counts the bytes that collectives send to other processes. The file that VNCA_COUNT_COLLECTIVES names gets a line for each kind when
// the process ends.
class Counts {
 public:
  void Add(const std::string &kind, double bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto &[calls, sent] = counts_[kind];
    calls += 1, sent += bytes;
  }

  ~Counts() {
    const char *path = std::getenv("VNCA_COUNT_COLLECTIVES");
    if (path == nullptr) return;
    std::ofstream out(path);
    for (const auto &[kind, count] : counts_) {
      out << kind << " " << count.first << " calls " << static_cast<uint64_t>(count.second) << " bytes\n";
    }
  }

 private:
  std::mutex mutex_;
  std::map<std::string, std::pair<uint64_t, double>> counts_;
};

Counts &TheCounts() {
  static Counts counts;
  return counts;
}

// The collectives of one device with all others. Sums are made here, in the order of the ranks as within one process, and not
// by Gloo, whose order is another one: so a program computes the same bits, however its devices are divided among processes.
class GlooCommunicator : public xla::Communicator {
 public:
  using Address = stream_executor::DeviceAddressBase;
  using Addresses = absl::InlinedVector<Address, 4>;

  // `local` is the number of ranks of this process, which follow each other. It is known when all of them have connected.
  using Local = std::shared_ptr<std::atomic<size_t>>;

  GlooCommunicator(std::shared_ptr<gloo::Context> context, Local local)
      : context_(std::move(context)), local_(std::move(local)) {}

  xla::Future<> AllReduce(Address send, Address receive, xla::PrimitiveType type, size_t count, xla::ReductionKind kind,
                          const Executor &) override {
    Count("all-reduce", Bytes(type, count));
    return Guard([&] { return Reduce(send, receive, type, count, kind, /*first=*/0, /*total=*/count); });
  }

  xla::Future<> ReduceScatter(Address send, Address receive, xla::PrimitiveType type, size_t count, xla::ReductionKind kind,
                              const Executor &) override {
    Count("reduce-scatter", Bytes(type, count * context_->size));
    return Guard([&] {
      return Reduce(send, receive, type, count, kind, /*first=*/context_->rank * count, /*total=*/context_->size * count);
    });
  }

  xla::Future<> AllGather(Address send, Address receive, xla::PrimitiveType type, size_t count, const Executor &) override {
    Count("all-gather", Bytes(type, count));
    return Guard([&] {
      Gather(send, static_cast<char *>(receive.opaque()), Bytes(type, count));
      return absl::OkStatus();
    });
  }

  xla::Future<> AllToAll(Addresses send, Addresses receive, xla::PrimitiveType type, size_t count,
                         const Executor &) override {
    return Guard([&] {
      size_t size = Bytes(type, count);
      TheCounts().Add("all-to-all", static_cast<double>(size * (context_->size - *local_)));
      std::vector<char> to(size * send.size()), from(size * receive.size());
      for (size_t i = 0; i < send.size(); ++i) memcpy(&to[i * size], send[i].opaque(), size);
      gloo::AlltoallOptions options(context_);
      options.setInput(to.data(), to.size());
      options.setOutput(from.data(), from.size());
      gloo::alltoall(options);
      for (size_t i = 0; i < receive.size(); ++i) memcpy(receive[i].opaque(), &from[i * size], size);
      return absl::OkStatus();
    });
  }

  xla::Future<> Broadcast(Address, Address, xla::PrimitiveType, size_t, xla::RankId, const Executor &) override {
    return absl::UnimplementedError("broadcast");
  }
  xla::Future<> CollectivePermute(Address, Address, xla::PrimitiveType, size_t, std::optional<xla::RankId>,
                                  absl::Span<const xla::RankId>, const Executor &) override {
    return absl::UnimplementedError("collective-permute");
  }
  xla::Future<> Send(Address, xla::PrimitiveType, size_t, xla::RankId, const Executor &) override {
    return absl::UnimplementedError("send");
  }
  xla::Future<> Recv(Address, xla::PrimitiveType, size_t, xla::RankId, const Executor &) override {
    return absl::UnimplementedError("recv");
  }

  absl::StatusOr<size_t> NumRanks() const override { return context_->size; }
  std::string ToString() const override { return absl::StrCat("gloo ", context_->rank, " of ", context_->size); }

 private:
  static size_t Bytes(xla::PrimitiveType type, size_t count) {
    return count * xla::ShapeUtil::ByteSizeOfPrimitiveType(type);
  }

  // Every rank's bytes go around a ring of ranks, in which one of each process sends to another process.
  void Count(const std::string &kind, size_t size) {
    size_t local = *local_;
    bool others = static_cast<size_t>(context_->size) > local;
    TheCounts().Add(kind, others ? static_cast<double>(size * (context_->size - 1)) / local : 0);
  }

  void Gather(Address send, char *out, size_t size) {
    gloo::AllgatherOptions options(context_);
    options.setInput(static_cast<char *>(send.opaque()), size);
    options.setOutput(out, size * context_->size);
    gloo::allgather(options);
  }

  // Reduces `count` elements from the `first` one on, of `total` elements of each rank.
  absl::Status Reduce(Address send, Address receive, xla::PrimitiveType type, size_t count, xla::ReductionKind kind,
                      size_t first, size_t total) {
    std::vector<char> rows(Bytes(type, total) * context_->size);
    Gather(send, rows.data(), Bytes(type, total));
    auto reduce = [&](auto zero) {
      using T = decltype(zero);
      ReduceRows<T>(kind, rows.data() + first * sizeof(T), context_->size, total, count, receive.opaque());
      return absl::OkStatus();
    };
    switch (type) {
      case xla::PRED:
      case xla::U8: return reduce(uint8_t{});
      case xla::S32: return reduce(int32_t{});
      case xla::U32: return reduce(uint32_t{});
      case xla::U64: return reduce(uint64_t{});
      case xla::F32: return reduce(float{});
      case xla::BF16: return reduce(xla::bfloat16{});
      default: return absl::UnimplementedError(absl::StrCat("a reduction of type ", type));
    }
  }

  std::shared_ptr<gloo::Context> context_;
  Local local_;
};

class GlooCollectives : public xla::cpu::CpuCollectives {
 public:
  explicit GlooCollectives(Store store) : store_(std::move(store)) {
    // The processes are on one machine, whose own name need not resolve.
    gloo::transport::tcp::attr attributes("localhost");
    device_ = gloo::transport::tcp::CreateDevice(attributes);
  }

  absl::StatusOr<std::vector<std::unique_ptr<xla::Communicator>>> CreateCommunicators(
      const xla::CliqueKey &clique, const std::optional<xla::CliqueIds> &, absl::Span<const DeviceRank> ranks,
      const Config &) override {
    std::vector<std::unique_ptr<xla::Communicator>> made;
    absl::Status status = Guard([&] {
      auto append = [](std::string *out, const auto &id) { absl::StrAppend(out, id.value()); };
      std::string name = absl::StrJoin(clique.devices(), ",", append);
      Store store = store_.At(absl::StrCat("gloo/", name, "/"));
      GlooCommunicator::Local local;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        auto &known = locals_[name];
        if (known == nullptr) known = std::make_shared<std::atomic<size_t>>(0);
        *known += ranks.size();
        local = known;
      }
      for (const auto &rank : ranks) {
        auto context = std::make_shared<gloo::rendezvous::Context>(rank.rank.value(), clique.num_devices());
        context->setTimeout(kTimeout);
        context->connectFullMesh(store, device_);
        made.push_back(std::make_unique<GlooCommunicator>(std::move(context), local));
      }
      return absl::OkStatus();
    });
    if (!status.ok()) return status;
    return made;
  }

 private:
  Store store_;
  std::shared_ptr<gloo::transport::Device> device_;
  std::mutex mutex_;
  // By the devices of the clique.
  std::map<std::string, GlooCommunicator::Local> locals_;
};

absl::Status CreateClient(PJRT_Client_Create_Args &args) {
  int64_t node = 0, nodes = 1, devices = 1;
  for (const auto *o = args.create_options; o != args.create_options + args.num_options; ++o) {
    absl::string_view name(o->name, o->name_size);
    int64_t *value = name == "node_id" ? &node : name == "num_nodes" ? &nodes : name == "num_devices" ? &devices : nullptr;
    if (value == nullptr || o->type != PJRT_NamedValue_kInt64) {
      return absl::InvalidArgumentError(absl::StrCat("Unexpected option: ", name));
    }
    *value = o->int64_value;
  }
  if (nodes > 1 && args.kv_get_callback == nullptr) {
    return absl::InvalidArgumentError("several nodes need the callbacks of a store");
  }
  xla::CpuClientOptions options;
  // With one device, XLA runs programs in the caller's thread or in any order. Collectives need the caller's order.
  options.asynchronous = false;
  options.cpu_device_count = devices;
  options.process_id = node;
  Store store(args, "cpu/");
  if (nodes > 1) options.collectives = std::make_shared<GlooCollectives>(store);
  auto client = xla::GetXlaPjrtCpuClient(std::move(options));
  if (!client.ok()) return client.status();
  auto made = std::make_unique<PJRT_Client>();
  made->client = *std::move(client);
  made->name = std::string(made->client->platform_name());
  made->version = std::string(made->client->platform_version());
  made->process = node;
  // XLA's client knows its own devices. It takes any ids in a program's assignment, so the others' ids are all it needs.
  std::vector<int> ids;
  for (const auto *device : made->client->addressable_devices()) ids.push_back(device->id());
  if (nodes > 1) {
    std::string text = absl::StrJoin(ids, ",");
    store.set(absl::StrCat("devices/", node), {text.begin(), text.end()});
  }
  for (int process = 0; process < nodes; ++process) {
    if (process == node) {
      for (auto *device : made->client->addressable_devices()) made->storage.push_back({{device->id(), process, device}});
      continue;
    }
    std::vector<char> text = store.get(absl::StrCat("devices/", process));
    for (auto part : absl::StrSplit(absl::string_view(text.data(), text.size()), ',')) {
      int id = 0;
      if (!absl::SimpleAtoi(part, &id)) return absl::InternalError("the list of a process's devices is damaged");
      made->storage.push_back({{id, process, nullptr}});
    }
  }
  for (auto &device : made->storage) {
    made->devices.push_back(&device);
    if (device.own != nullptr) made->own.push_back(&device);
  }
  args.client = made.release();
  return absl::OkStatus();
}

absl::StatusOr<PJRT_LoadedExecutable *> Wrap(const PJRT_Client &client,
                                             absl::StatusOr<std::unique_ptr<xla::PjRtLoadedExecutable>> made) {
  if (!made.ok()) return made.status();
  auto loaded = std::make_unique<PJRT_LoadedExecutable>();
  loaded->program = *std::move(made);
  for (const auto *device : loaded->program->addressable_devices()) {
    for (auto *own : client.own) {
      if (own->own == device) loaded->devices.push_back(own);
    }
  }
  return loaded.release();
}

absl::Status Compile(PJRT_Client_Compile_Args &args) {
  absl::string_view code(args.program->code, args.program->code_size);
  absl::string_view format(args.program->format, args.program->format_size);
  xla::XlaComputation computation;
  if (format == "mlir") {
    absl::Status status = xla::ParseMlirModuleStringAndConvertToXlaComputation(code, computation, false, false);
    if (!status.ok()) return status;
  } else {
    xla::HloModuleProto module;
    if (format != "hlo" || !module.ParseFromArray(code.data(), code.size())) {
      return absl::InvalidArgumentError(absl::StrCat("the program is no module in the format hlo or mlir, but ", format));
    }
    computation = xla::XlaComputation(std::move(module));
  }
  xla::CompileOptionsProto proto;
  if (!proto.ParseFromArray(args.compile_options, args.compile_options_size)) {
    return absl::InvalidArgumentError("the compile options are damaged");
  }
  auto options = xla::CompileOptions::FromProto(proto);
  if (!options.ok()) return options.status();
  auto loaded = Wrap(*args.client, args.client->client->CompileAndLoad(computation, *std::move(options)));
  if (loaded.ok()) args.executable = *loaded;
  return loaded.status();
}

absl::Status Load(PJRT_Executable_DeserializeAndLoad_Args &args) {
  absl::string_view bytes(args.serialized_executable, args.serialized_executable_size);
  auto made = args.client->client->LoadSerializedExecutable(bytes, std::nullopt, xla::LoadOptions());
  auto loaded = Wrap(*args.client, std::move(made));
  if (loaded.ok()) args.loaded_executable = *loaded;
  return loaded.status();
}

absl::Status Serialize(PJRT_Executable_Serialize_Args &args) {
  auto bytes = args.executable->program->SerializeExecutable();
  if (!bytes.ok()) return bytes.status();
  auto *serialized = new PJRT_SerializedExecutable{*std::move(bytes)};
  args.serialized_executable = serialized;
  args.serialized_bytes = serialized->bytes.data();
  args.serialized_bytes_size = serialized->bytes.size();
  args.serialized_executable_deleter = [](PJRT_SerializedExecutable *s) { delete s; };
  return absl::OkStatus();
}

absl::Status CountOutputs(PJRT_Executable_NumOutputs_Args &args) {
  auto modules = args.executable->program->GetHloModules();
  if (!modules.ok()) return modules.status();
  const xla::Shape &shape = (*modules)[0]->result_shape();
  args.num_outputs = shape.IsTuple() ? shape.tuple_shapes().size() : 1;
  return absl::OkStatus();
}

absl::Status Execute(PJRT_LoadedExecutable_Execute_Args &args) {
  std::vector<std::vector<xla::PjRtBuffer *>> rows(args.num_devices);
  for (size_t d = 0; d < args.num_devices; ++d) {
    for (size_t i = 0; i < args.num_args; ++i) rows[d].push_back(args.argument_lists[d][i]->buffer.get());
  }
  xla::ExecuteOptions options;
  options.launch_id = args.options->launch_id;
  auto results = args.executable->program->Execute(rows, options);
  if (!results.ok()) return results.status();
  for (size_t d = 0; d < results->size(); ++d) {
    for (size_t i = 0; i < (*results)[d].size(); ++i) {
      args.output_lists[d][i] = new PJRT_Buffer{std::move((*results)[d][i])};
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<xla::PrimitiveType> ToXla(PJRT_Buffer_Type type) {
  switch (type) {
    case PJRT_Buffer_Type_PRED: return xla::PRED;
    case PJRT_Buffer_Type_S32: return xla::S32;
    case PJRT_Buffer_Type_U8: return xla::U8;
    case PJRT_Buffer_Type_U32: return xla::U32;
    case PJRT_Buffer_Type_U64: return xla::U64;
    case PJRT_Buffer_Type_F32: return xla::F32;
    case PJRT_Buffer_Type_BF16: return xla::BF16;
    default: return absl::UnimplementedError(absl::StrCat("arrays of type ", type));
  }
}

// Copies a row-major array before it returns: there is no event to wait for.
absl::Status Put(PJRT_Client_BufferFromHostBuffer_Args &args) {
  auto type = ToXla(args.type);
  if (!type.ok()) return type.status();
  if (args.device->own == nullptr) return absl::InvalidArgumentError("the device belongs to another process");
  auto memory = args.device->own->default_memory_space();
  if (!memory.ok()) return memory.status();
  auto buffer = args.client->client->BufferFromHostBuffer(
      args.data, *type, absl::MakeConstSpan(args.dims, args.num_dims), std::nullopt,
      xla::PjRtClient::HostBufferSemantics::kImmutableOnlyDuringCall, [] {}, *memory, /*device_layout=*/nullptr);
  if (buffer.ok()) args.buffer = new PJRT_Buffer{*std::move(buffer)};
  args.done_with_host_buffer = nullptr;
  return buffer.status();
}

// Waits for the array and copies it in row-major order, the only one that vnca asks for.
absl::Status Get(PJRT_Buffer_ToHostBuffer_Args &args) {
  auto literal = args.src->buffer->ToLiteralSync();
  if (!literal.ok()) return literal.status();
  if ((*literal)->size_bytes() != args.dst_size) return absl::InvalidArgumentError("the array has another size");
  if (args.dst_size > 0) memcpy(args.dst, (*literal)->untyped_data(), args.dst_size);
  args.event = nullptr;
  return absl::OkStatus();
}

// Makes a function of the C interface from one that returns a status or throws.
template <auto work>
struct Entry;
template <typename Args, absl::Status (*work)(Args &)>
struct Entry<work> {
  static PJRT_Error *Call(Args *args) {
    absl::Status status = Guard([&] { return work(*args); });
    return status.ok() ? nullptr : new PJRT_Error{std::move(status)};
  }
};

PJRT_Api MakeApi() {
  PJRT_Api api = {PJRT_Api_STRUCT_SIZE};
  api.pjrt_api_version = {PJRT_Api_Version_STRUCT_SIZE, nullptr, PJRT_API_MAJOR, PJRT_API_MINOR};
  api.PJRT_Error_Destroy = [](PJRT_Error_Destroy_Args *a) { delete a->error; };
  api.PJRT_Error_Message = [](PJRT_Error_Message_Args *a) {
    a->message = a->error->status.message().data(), a->message_size = a->error->status.message().size();
  };
  api.PJRT_Client_Create = Entry<CreateClient>::Call;
  api.PJRT_Client_Compile = Entry<Compile>::Call;
  api.PJRT_Client_BufferFromHostBuffer = Entry<Put>::Call;
  api.PJRT_Buffer_ToHostBuffer = Entry<Get>::Call;
  api.PJRT_Executable_DeserializeAndLoad = Entry<Load>::Call;
  api.PJRT_Executable_Serialize = Entry<Serialize>::Call;
  api.PJRT_Executable_NumOutputs = Entry<CountOutputs>::Call;
  api.PJRT_LoadedExecutable_Execute = Entry<Execute>::Call;
// Those that cannot fail.
#define FUNCTION(name, work) api.PJRT_##name = [](PJRT_##name##_Args *a) -> PJRT_Error * { return work, nullptr; }
  FUNCTION(Plugin_Initialize, 0);
  FUNCTION(Client_Destroy, delete a->client);
  FUNCTION(Executable_Destroy, delete a->executable);
  FUNCTION(LoadedExecutable_Destroy, delete a->executable);
  FUNCTION(Buffer_Destroy, delete a->buffer);
  FUNCTION(LoadedExecutable_GetExecutable, a->executable = new PJRT_Executable(*a->loaded_executable));
  FUNCTION(Device_GetDescription, a->device_description = a->device);
  FUNCTION(DeviceDescription_Id, a->id = a->device_description->id);
  FUNCTION(DeviceDescription_ProcessIndex, a->process_index = a->device_description->process);
  FUNCTION(Client_ProcessIndex, a->process_index = a->client->process);
#define LIST(name, list, count, value) FUNCTION(name, (a->list = (value).data(), a->count = (value).size()))
  LIST(DeviceDescription_Kind, device_kind, device_kind_size, absl::string_view("cpu"));
  LIST(Client_PlatformName, platform_name, platform_name_size, a->client->name);
  LIST(Client_PlatformVersion, platform_version, platform_version_size, a->client->version);
  LIST(Client_Devices, devices, num_devices, a->client->devices);
  LIST(Client_AddressableDevices, addressable_devices, num_addressable_devices, a->client->own);
  LIST(LoadedExecutable_AddressableDevices, addressable_devices, num_addressable_devices, a->executable->devices);
  return api;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const PJRT_Api *GetPjrtApi() {
  static const PJRT_Api api = MakeApi();
  return &api;
}
