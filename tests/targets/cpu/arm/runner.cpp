// Runs the code of an artifact once, with TVM's runtime libraries and nothing else: no Python, no compiler.
//
// Usage: runner CODE.so ARGUMENTS OUTPUT_FOLDER
//
// Each line of the file ARGUMENTS is a tensor: its file of raw bytes, its type as DLPack's code and bits, its sizes.
// Output i is written to OUTPUT_FOLDER/i, as raw bytes.

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

namespace {

constexpr std::size_t kAlignment = 64;

struct Allocator {
  void AllocData(DLTensor* tensor) {
    std::size_t bytes = std::max<std::size_t>(ffi::GetDataSize(*tensor), 1);
    tensor->data = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

ffi::Tensor Read(const std::string& line) {
  std::istringstream fields(line);
  std::string path;
  int code = 0, bits = 0;
  fields >> path >> code >> bits;
  std::vector<std::int64_t> shape;
  for (std::int64_t size = 0; fields >> size;) shape.push_back(size);
  DLDataType type{static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(bits), 1};
  ffi::Tensor tensor = ffi::Tensor::FromNDAlloc(Allocator(), ffi::Shape(shape), type, DLDevice{kDLCPU, 0});
  std::ifstream file(path, std::ios::binary);
  file.read(static_cast<char*>(tensor.data_ptr()), static_cast<std::streamsize>(ffi::GetDataSize(tensor)));
  if (!file) throw std::runtime_error("can't read " + path);
  return tensor;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: runner CODE.so ARGUMENTS OUTPUT_FOLDER\n";
    return 2;
  }
  try {
    ffi::Module code = ffi::Module::LoadFromFile(argv[1]);
    ffi::Module machine = code->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
    machine->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, 2);
    std::vector<ffi::Any> arguments;
    std::ifstream list(argv[2]);
    for (std::string line; std::getline(list, line);) arguments.emplace_back(Read(line));
    std::vector<ffi::AnyView> views(arguments.begin(), arguments.end());
    ffi::Any result;
    machine->GetFunction("main").value().CallPacked(views.data(), static_cast<int32_t>(views.size()), &result);
    ffi::Array<ffi::Tensor> outputs = result.cast<ffi::Array<ffi::Tensor>>();
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      std::ofstream file(std::string(argv[3]) + "/" + std::to_string(i), std::ios::binary);
      file.write(static_cast<const char*>(outputs[i].data_ptr()),
                 static_cast<std::streamsize>(ffi::GetDataSize(outputs[i])));
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
