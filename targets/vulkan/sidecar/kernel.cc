#include "kernel.h"

#include <tvm/ffi/error.h>

#include <algorithm>

#include "errors.h"

namespace greencc::vulkan {

namespace {

constexpr const char* kAxes[] = {"x", "y", "z"};

}  // namespace

Kernel::Kernel(Device& device, const KernelEntry& entry, const std::vector<std::uint32_t>& code)
    : device_(device),
      name_(entry.name),
      scalars_in_uniform_(entry.scalars_in_uniform && entry.scalars() != 0),
      push_constant_bytes_(kScalarsOffset + (scalars_in_uniform_ ? 0 : 8 * entry.scalars())) {
  device.CheckAlive();
  CheckDevice(entry);
  CheckSubgroup(entry);
  layout_ = &device.LayoutFor(entry.buffers(), scalars_in_uniform_, push_constant_bytes_);
  Compile(entry, code);
}

Kernel::~Kernel() { device_.vk().vkDestroyPipeline(device_.handle(), pipeline_, nullptr); }

void Kernel::CheckDevice(const KernelEntry& entry) const {
  auto refuse = [&](const std::string& what) {
    TVM_FFI_THROW(RuntimeError) << device_.name() << " can't run the kernel '" << name_ << "': " << what
                                << "; compile the model for this device";
  };
  auto limit = [&](const std::string& what, std::uint64_t needs, std::uint64_t has) {
    if (needs <= has) return;
    refuse("it has " + std::to_string(needs) + " " + what + ", the device allows " + std::to_string(has));
  };
  for (const std::string& feature : entry.required) {
    if (!device_.physical().features.Has(feature)) refuse("it needs " + feature + ", which the device lacks");
  }
  const VkPhysicalDeviceLimits& limits = device_.physical().limits();
  std::uint64_t threads = 1;
  for (int axis = 0; axis < 3; ++axis) {
    limit(std::string("threads along ") + kAxes[axis], entry.workgroup[axis], limits.maxComputeWorkGroupSize[axis]);
    threads *= entry.workgroup[axis];
  }
  limit("threads in a workgroup", threads, limits.maxComputeWorkGroupInvocations);
  limit("bytes of shared memory", entry.shared_bytes, limits.maxComputeSharedMemorySize);
  limit("bytes of push constants", push_constant_bytes_, limits.maxPushConstantsSize);
  limit("buffers", entry.buffers(),
        std::min(limits.maxPerStageDescriptorStorageBuffers, limits.maxDescriptorSetStorageBuffers));
}

void Kernel::CheckSubgroup(const KernelEntry& entry) const {
  if (!entry.subgroup.has_value()) return;
  const PhysicalDevice& physical = device_.physical();
  std::uint32_t size = *entry.subgroup;
  bool can_be_fixed = physical.features.subgroup_size;
  bool power = size != 0 && (size & (size - 1)) == 0;
  if (can_be_fixed ? power && size >= physical.subgroup_min && size <= physical.subgroup_max
                   : size == physical.subgroup) {
    return;
  }
  std::string has = "the device has " + std::to_string(physical.subgroup_min) + " to " +
                    std::to_string(physical.subgroup_max);
  if (!can_be_fixed) has = "the device has " + std::to_string(physical.subgroup) + " and no other";
  TVM_FFI_THROW(RuntimeError) << device_.name() << " can't run the kernel '" << name_
                              << "': it is made for subgroups of " << size << " threads, " << has
                              << "; compile the model for this device";
}

void Kernel::Compile(const KernelEntry& entry, const std::vector<std::uint32_t>& code) {
  const DeviceFunctions& vk = device_.vk();
  auto shader = Structure<VkShaderModuleCreateInfo>(VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO);
  shader.codeSize = code.size() * sizeof(code[0]);
  shader.pCode = code.data();
  auto info = Structure<VkComputePipelineCreateInfo>(VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO);
  info.stage.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO;
  info.stage.stage = VK_SHADER_STAGE_COMPUTE_BIT;
  info.stage.pName = "main";
  info.layout = layout_->pipeline;
  auto size = Structure<VkPipelineShaderStageRequiredSubgroupSizeCreateInfo>(
      VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO);
  if (entry.subgroup.has_value() && device_.physical().features.subgroup_size) {
    size.requiredSubgroupSize = *entry.subgroup;
    info.stage.pNext = &size;
    if (device_.physical().features.full_subgroups && entry.workgroup[0] % *entry.subgroup == 0) {
      info.stage.flags |= VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT;
    }
  }
  VkPipelineCreationFeedback whole{}, stage{};
  auto feedback = Structure<VkPipelineCreationFeedbackCreateInfo>(
      VK_STRUCTURE_TYPE_PIPELINE_CREATION_FEEDBACK_CREATE_INFO);
  feedback.pPipelineCreationFeedback = &whole;
  feedback.pipelineStageCreationFeedbackCount = 1;
  feedback.pPipelineStageCreationFeedbacks = &stage;
  if (device_.physical().features.creation_feedback) info.pNext = &feedback;
  device_.Check(vk.vkCreateShaderModule(device_.handle(), &shader, nullptr, &info.stage.module), "loading a kernel");
  VkResult result = vk.vkCreateComputePipelines(device_.handle(), device_.pipeline_cache().handle(), 1, &info, nullptr,
                                                &pipeline_);
  vk.vkDestroyShaderModule(device_.handle(), info.stage.module, nullptr);
  device_.Check(result, ("compiling the kernel '" + name_ + "'").c_str());
  constexpr VkPipelineCreationFeedbackFlags kHit =
      VK_PIPELINE_CREATION_FEEDBACK_VALID_BIT | VK_PIPELINE_CREATION_FEEDBACK_APPLICATION_PIPELINE_CACHE_HIT_BIT;
  if ((whole.flags & kHit) == kHit) {
    device_.statistics().pipelines_cached += 1;
    return;
  }
  device_.statistics().pipelines_compiled += 1;
  device_.pipeline_cache().Grew();
}

}  // namespace greencc::vulkan
