// Runs an artifact on a Vulkan device, with TVM's runtime libraries and greencc's for Vulkan: no Python, no compiler.
//
// Usage: runner LIBRARY ARTIFACT INPUTS OUTPUT_FOLDER
//
// LIBRARY is libgreencc_vulkan.so, ARTIFACT the artifact's folder. Each line of the file INPUTS is a tensor, in the
// order of the model's inputs: its file of raw bytes, its type as DLPack's code and bits, its sizes. Output i is
// written to OUTPUT_FOLDER/i, as raw bytes.

#include <dlfcn.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;
namespace json = tvm::ffi::json;

namespace {

constexpr std::size_t kAlignment = 64;
constexpr DLDevice kHost{kDLCPU, 0}, kGpu{kDLVulkan, 0};
constexpr int kPooled = 2;

struct Allocator {
  void AllocData(DLTensor* tensor) {
    std::size_t bytes = std::max<std::size_t>(ffi::GetDataSize(*tensor), 1);
    tensor->data = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

ffi::Tensor HostTensor(const ffi::Shape& shape, DLDataType type) {
  return ffi::Tensor::FromNDAlloc(Allocator(), shape, type, kHost);
}

ffi::Function Global(const char* name) {
  auto function = ffi::Function::GetGlobal(name);
  if (!function.has_value()) throw std::runtime_error(std::string("the runtime has no function ") + name);
  return *function;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("can't read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// A copy of a host tensor on the device, there after Synchronize.
ffi::Tensor Upload(const ffi::Tensor& host) {
  auto tensor = Global("runtime.TVMTensorAllocWithScope")(ffi::Shape(host.shape()), host.dtype(), kGpu, nullptr)
                    .cast<ffi::Tensor>();
  if (ffi::GetDataSize(host) != 0) Global("runtime.TVMTensorCopyFromTo")(host, tensor);
  return tensor;
}

void Synchronize() { Global("runtime.Device_StreamSync")(kGpu, 0); }

ffi::Tensor ReadInput(const std::string& line) {
  std::istringstream fields(line);
  std::string path;
  int code = 0, bits = 0;
  fields >> path >> code >> bits;
  std::vector<std::int64_t> shape;
  for (std::int64_t size = 0; fields >> size;) shape.push_back(size);
  DLDataType type{static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(bits), 1};
  ffi::Tensor tensor = HostTensor(ffi::Shape(shape), type);
  std::string data = ReadFile(path);
  if (data.size() != ffi::GetDataSize(tensor)) throw std::runtime_error(path + " has another size");
  std::copy(data.begin(), data.end(), static_cast<char*>(tensor.data_ptr()));
  return tensor;
}

DLDataType TypeOf(const std::string& code) {
  if (code == "BOOL") return {kDLBool, 8, 1};
  auto bits = static_cast<std::uint8_t>(std::stoi(code.substr(1)));
  std::uint8_t kind = code[0] == 'I' ? kDLInt : code[0] == 'U' ? kDLUInt : kDLFloat;
  return {kind, bits, 1};
}

// The tensors of a safetensors file in the order of their bytes, which is that of main's parameters.
std::vector<ffi::Tensor> ReadWeights(const std::string& path) {
  struct Entry {
    std::int64_t begin, end;
    std::string type;
    std::vector<std::int64_t> shape;
  };
  std::string file = ReadFile(path);
  std::uint64_t length = 0;
  for (int i = 0; i < 8; ++i) length |= static_cast<std::uint64_t>(static_cast<unsigned char>(file.at(i))) << (8 * i);
  std::vector<Entry> entries;
  for (const auto& [key, value] : json::Parse(file.substr(8, length)).cast<json::Object>()) {
    std::string name = key.cast<ffi::String>();
    if (name == "__metadata__" || name.rfind("__pad.", 0) == 0) continue;
    auto fields = value.cast<json::Object>();
    auto offsets = fields.at(ffi::String("data_offsets")).cast<json::Array>();
    Entry entry{offsets[0].cast<std::int64_t>(), offsets[1].cast<std::int64_t>(),
                fields.at(ffi::String("dtype")).cast<ffi::String>(), {}};
    for (const auto& size : fields.at(ffi::String("shape")).cast<json::Array>()) {
      entry.shape.push_back(size.cast<std::int64_t>());
    }
    entries.push_back(entry);
  }
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  std::vector<ffi::Tensor> weights;
  const char* data = file.data() + 8 + length;
  for (const Entry& entry : entries) {
    ffi::Tensor tensor = HostTensor(ffi::Shape(entry.shape), TypeOf(entry.type));
    std::copy(data + entry.begin, data + entry.end, static_cast<char*>(tensor.data_ptr()));
    weights.push_back(Upload(tensor));
  }
  Synchronize();
  return weights;
}

void Run(const std::string& artifact, const std::string& inputs, const std::string& folder) {
  ffi::Module code = ffi::Module::LoadFromFile(artifact + "/code.so");
  // Code for the host looks for kernels among the imports of its own module, which the VM's executable imports.
  ffi::Module host = code->imports().empty() ? code : code->imports()[0].cast<ffi::Module>();
  host->ImportModule(Global("greencc.vulkan.module")(ffi::String(ReadFile(artifact + "/kernels.json")),
                                                     ffi::Bytes(ReadFile(artifact + "/kernels.spv")))
                         .cast<ffi::Module>());
  ffi::Module machine = code->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
  machine->GetFunction("vm_initialization").value()(static_cast<int>(kDLVulkan), 0, kPooled, static_cast<int>(kDLCPU),
                                                    0, kPooled);
  std::vector<ffi::Any> arguments;
  std::vector<ffi::Tensor> weights = ReadWeights(artifact + "/weights.safetensors");
  Global("greencc.vulkan.reset_statistics")(0);
  std::istringstream list(ReadFile(inputs));
  for (std::string line; std::getline(list, line);) arguments.emplace_back(Upload(ReadInput(line)));
  arguments.insert(arguments.end(), weights.begin(), weights.end());
  std::vector<ffi::AnyView> views(arguments.begin(), arguments.end());
  ffi::Any result;
  machine->GetFunction("main").value().CallPacked(views.data(), static_cast<int32_t>(views.size()), &result);
  // All results come with one wait.
  std::vector<ffi::Tensor> outputs;
  for (const ffi::Tensor& tensor : result.cast<ffi::Array<ffi::Tensor>>()) {
    outputs.push_back(HostTensor(ffi::Shape(tensor.shape()), tensor.dtype()));
    if (ffi::GetDataSize(tensor) != 0) Global("runtime.TVMTensorCopyFromTo")(tensor, outputs.back());
  }
  Synchronize();
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    std::ofstream file(folder + "/" + std::to_string(i), std::ios::binary);
    file.write(static_cast<const char*>(outputs[i].data_ptr()),
               static_cast<std::streamsize>(ffi::GetDataSize(outputs[i])));
  }
  std::cout << Global("greencc.vulkan.statistics")(0).cast<ffi::String>() << "\n"
            << Global("greencc.vulkan.validation_messages")().cast<ffi::String>() << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: runner LIBRARY ARTIFACT INPUTS OUTPUT_FOLDER\n";
    return 2;
  }
  if (dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::cerr << dlerror() << "\n";
    return 1;
  }
  try {
    Run(argv[2], argv[3], argv[4]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
