#include "spirv.h"

#include <tvm/ffi/error.h>

#include <cstring>
#include <string>

namespace greencc::vulkan {

namespace {

// Numbers of the SPIR-V specification.
constexpr std::uint32_t kMagic = 0x07230203;
constexpr std::size_t kHeaderWords = 5;
constexpr std::uint32_t kOpEntryPoint = 15, kOpExecutionMode = 16, kOpDecorate = 71;
constexpr std::uint32_t kModelGLCompute = 5, kModeLocalSize = 17;
constexpr std::uint32_t kDecorationBinding = 33, kDecorationDescriptorSet = 34;

[[noreturn]] void Refuse(const KernelEntry& kernel, const std::string& what) {
  TVM_FFI_THROW(ValueError) << "kernels.spv: the code of '" << kernel.name << "' " << what;
  TVM_FFI_UNREACHABLE();
}

bool IsMain(const std::uint32_t* words, std::size_t count) {
  return count >= 2 && std::memcmp(words, "main\0\0\0\0", 8) == 0;
}

}  // namespace

void CheckSpirv(const KernelEntry& kernel, const std::vector<std::uint32_t>& words) {
  if (words.size() < kHeaderWords || words[0] != kMagic) Refuse(kernel, "is not SPIR-V");
  std::uint32_t bindings = kernel.buffers() + (kernel.scalars_in_uniform ? 1 : 0);
  bool entry = false, sized = false;
  for (std::size_t at = kHeaderWords; at < words.size();) {
    std::uint32_t opcode = words[at] & 0xffff;
    std::size_t count = words[at] >> 16;
    if (count == 0 || count > words.size() - at) Refuse(kernel, "is cut off");
    const std::uint32_t* operands = &words[at] + 1;
    if (opcode == kOpEntryPoint) {
      if (entry || count < 5 || operands[0] != kModelGLCompute || !IsMain(operands + 2, count - 3)) {
        Refuse(kernel, "has an entry point that is not the compute shader 'main'");
      }
      entry = true;
    } else if (opcode == kOpExecutionMode && count == 6 && operands[1] == kModeLocalSize) {
      for (int axis = 0; axis < 3; ++axis) {
        if (operands[2 + axis] != kernel.workgroup[axis]) {
          Refuse(kernel, "has workgroups of " + std::to_string(operands[2 + axis]) + " threads along axis " +
                             std::to_string(axis) + ", kernels.json says " + std::to_string(kernel.workgroup[axis]));
        }
      }
      sized = true;
    } else if (opcode == kOpDecorate && count == 4 && operands[1] == kDecorationBinding && operands[2] >= bindings) {
      Refuse(kernel, "uses binding " + std::to_string(operands[2]) + ", kernels.json gives it " +
                         std::to_string(bindings));
    } else if (opcode == kOpDecorate && count == 4 && operands[1] == kDecorationDescriptorSet && operands[2] != 0) {
      Refuse(kernel, "uses descriptor set " + std::to_string(operands[2]) + ", not 0");
    }
    at += count;
  }
  if (!entry) Refuse(kernel, "has no entry point 'main'");
  if (!sized) Refuse(kernel, "has no workgroup size");
}

}  // namespace greencc::vulkan
