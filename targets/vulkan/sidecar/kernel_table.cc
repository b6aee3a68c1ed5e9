#include "kernel_table.h"

#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/json.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "features.h"

namespace greencc::vulkan {

namespace {

namespace ffi = tvm::ffi;
namespace json = tvm::ffi::json;

constexpr std::int64_t kVersion = 1;
// A text from a file must not use up the parser's stack.
constexpr int kMostNesting = 16;
constexpr std::size_t kMostParameters = 1024;

void CheckNesting(const std::string& text) {
  int depth = 0;
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMostNesting) TVM_FFI_THROW(ValueError) << "kernels.json is nested too deeply";
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
}

// A JSON value and where it is, for messages.
class Value {
 public:
  Value(ffi::Any value, std::string where) : value_(std::move(value)), where_(std::move(where)) {}

  [[noreturn]] void Refuse(const std::string& what) const {
    TVM_FFI_THROW(ValueError) << "kernels.json: " << where_ << " " << what;
    TVM_FFI_UNREACHABLE();
  }

  bool null() const { return value_ == nullptr; }

  Value operator[](const std::string& key) const {
    json::Object object = As<json::Object>("an object");
    auto found = object.find(ffi::String(key));
    if (found == object.end()) Refuse("has no \"" + key + "\"");
    return {(*found).second, where_ + "." + key};
  }

  bool Has(const std::string& key) const {
    json::Object object = As<json::Object>("an object");
    return object.find(ffi::String(key)) != object.end();
  }

  std::vector<std::pair<std::string, Value>> Members() const {
    std::vector<std::pair<std::string, Value>> members;
    for (const auto& [key, value] : As<json::Object>("an object")) {
      std::string name = key.cast<ffi::String>();
      members.emplace_back(name, Value(value, where_ + "." + name));
    }
    return members;
  }

  std::vector<Value> Items() const {
    std::vector<Value> items;
    for (const ffi::Any& item : As<json::Array>("a list")) {
      items.emplace_back(item, where_ + "[" + std::to_string(items.size()) + "]");
    }
    return items;
  }

  std::string Text() const { return As<ffi::String>("a text"); }

  bool Flag() const {
    if (value_.type_index() != ffi::TypeIndex::kTVMFFIBool) Refuse("is not true or false");
    return value_.cast<bool>();
  }

  std::uint64_t Count(std::uint64_t most) const {
    if (value_.type_index() != ffi::TypeIndex::kTVMFFIInt) Refuse("is not an integer");
    auto number = value_.cast<std::int64_t>();
    if (number < 0 || static_cast<std::uint64_t>(number) > most) {
      Refuse("is " + std::to_string(number) + ", not from 0 to " + std::to_string(most));
    }
    return static_cast<std::uint64_t>(number);
  }

 private:
  template <typename T>
  T As(const char* what) const {
    if (auto typed = value_.as<T>()) return *typed;
    Refuse(std::string("is not ") + what);
  }

  ffi::Any value_;
  std::string where_;
};

constexpr std::uint64_t kAny = static_cast<std::uint64_t>(INT64_MAX);

ScalarType ReadScalarType(const Value& value) {
  constexpr const char* kIntegers[] = {"bool",  "int8",   "int16",  "int32", "int64",
                                       "uint8", "uint16", "uint32", "uint64"};
  std::string name = value.Text();
  if (std::find(std::begin(kIntegers), std::end(kIntegers), name) != std::end(kIntegers)) return ScalarType::kInteger;
  if (name == "float64") return ScalarType::kFloat64;
  if (name == "float32" || name == "float16" || name == "bfloat16") return ScalarType::kFloat32;
  value.Refuse("is \"" + name + "\", which is no type of a scalar");
}

Parameter ReadParameter(const Value& value) {
  Parameter parameter;
  std::string kind = value["kind"].Text();
  if (kind == "scalar") {
    parameter.type = ReadScalarType(value["type"]);
    parameter.is_index = value["is_index"].Flag();
    return parameter;
  }
  if (kind != "buffer") value["kind"].Refuse("is \"" + kind + "\", not \"buffer\" or \"scalar\"");
  parameter.buffer = true;
  std::string access = value["access"].Text();
  parameter.reads = access == "read" || access == "readwrite";
  parameter.writes = access == "write" || access == "readwrite";
  if (!parameter.reads && !parameter.writes) value["access"].Refuse("is \"" + access + "\"");
  Value bytes = value["bytes"];
  if (!bytes.null()) parameter.bytes = bytes.Count(kAny);
  return parameter;
}

LaunchArgument ReadLaunchArgument(const Value& value) {
  std::string tag = value.Text();
  if (tag == "tirx.use_dyn_shared_memory" || tag == "tir.use_dyn_shared_memory") return {LaunchTag::kSharedBytes, 0};
  if (tag.size() > 2 && tag[tag.size() - 2] == '.') {
    int axis = tag.back() - 'x';
    std::string_view what = std::string_view(tag).substr(0, tag.size() - 2);
    if (axis >= 0 && axis < 3 && what == "blockIdx") return {LaunchTag::kGroups, axis};
    if (axis >= 0 && axis < 3 && what == "threadIdx") return {LaunchTag::kThreads, axis};
  }
  value.Refuse("is \"" + tag + "\", which is no launch argument");
}

KernelEntry ReadKernel(const std::string& name, const Value& value, std::uint64_t code_bytes) {
  KernelEntry kernel;
  kernel.name = name;
  for (const Value& each : value["parameters"].Items()) kernel.parameters.push_back(ReadParameter(each));
  if (kernel.parameters.size() > kMostParameters) value["parameters"].Refuse("are too many");
  for (const Value& each : value["launch"].Items()) kernel.launch.push_back(ReadLaunchArgument(each));
  std::vector<Value> workgroup = value["workgroup"].Items();
  if (workgroup.size() != 3) value["workgroup"].Refuse("has not three sizes");
  for (std::size_t axis = 0; axis < 3; ++axis) {
    kernel.workgroup[axis] = static_cast<std::uint32_t>(workgroup[axis].Count(UINT32_MAX));
    if (kernel.workgroup[axis] == 0) workgroup[axis].Refuse("is 0");
  }
  std::vector<Value> code = value["code"].Items();
  if (code.size() != 2) value["code"].Refuse("is not an offset and a size");
  kernel.code_offset = code[0].Count(kAny);
  kernel.code_size = code[1].Count(kAny);
  if (kernel.code_offset > code_bytes || kernel.code_size > code_bytes - kernel.code_offset) {
    value["code"].Refuse("ends at byte " + std::to_string(kernel.code_offset + kernel.code_size) +
                         " of kernels.spv, which has " + std::to_string(code_bytes));
  }
  for (const Value& each : value["requires"].Items()) {
    kernel.required.push_back(each.Text());
    if (!Features::IsKnown(kernel.required.back())) {
      each.Refuse("is \"" + kernel.required.back() + "\", which this Vulkan runtime does not know: install the greencc "
                  "that compiled the model, or compile it again");
    }
  }
  if (!value["subgroup"].null()) kernel.subgroup = static_cast<std::uint32_t>(value["subgroup"].Count(UINT32_MAX));
  kernel.shared_bytes = value["shared_bytes"].Count(kAny);
  kernel.scalars_in_uniform = value["scalars_in_uniform"].Flag();
  return kernel;
}

}  // namespace

std::uint32_t KernelEntry::buffers() const {
  return static_cast<std::uint32_t>(
      std::count_if(parameters.begin(), parameters.end(), [](const Parameter& each) { return each.buffer; }));
}

std::uint32_t KernelEntry::scalars() const { return static_cast<std::uint32_t>(parameters.size()) - buffers(); }

std::vector<KernelEntry> ReadKernelTable(const std::string& text, std::uint64_t code_bytes) {
  CheckNesting(text);
  ffi::String error;
  ffi::Any parsed = json::Parse(text, &error);
  if (error.size() != 0) TVM_FFI_THROW(ValueError) << "kernels.json is not JSON: " << error;
  Value root(parsed, "the table");
  std::uint64_t version = root["version"].Count(kAny);
  if (version != kVersion) {
    TVM_FFI_THROW(ValueError) << "kernels.json is of version " << version << ", this Vulkan runtime reads version "
                              << kVersion << ": compile the model again, or install the greencc that made it";
  }
  bool unbounded = root.Has("unbounded") && root["unbounded"].Flag();
  std::vector<KernelEntry> kernels;
  for (const auto& [name, value] : root["functions"].Members()) {
    kernels.push_back(ReadKernel(name, Value(value), code_bytes));
    kernels.back().unbounded = unbounded;
  }
  return kernels;
}

}  // namespace greencc::vulkan
