#include "worker/vk_instance.h"

#include <stdlib.h>
#include <string.h>

static VkBool32 VKAPI_CALL on_validation(VkDebugUtilsMessageSeverityFlagBitsEXT severity,
                                         VkDebugUtilsMessageTypeFlagsEXT types,
                                         const VkDebugUtilsMessengerCallbackDataEXT *data, void *arg)
{
    struct esp_vk *vk = arg;
    const char *fatal = getenv("ESPALIER_VALIDATE");

    if (!(types & VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT))
        return VK_FALSE; /* the loader's own remarks */
    if (data->pMessageIdName &&
        strcmp(data->pMessageIdName, "UNASSIGNED-CoreValidation-Shader-MaxComputeSharedMemorySize") == 0)
        return VK_FALSE; /* layers before 1.3.224 miscount arrays sized by specialization; stage.c checks the limit */
    vk->n_validation++;
    esp_log(vk->log, ESP_LOG_ERROR, "vulkan_validation %s", data->pMessage ? data->pMessage : "(no message)");
    if (fatal && strcmp(fatal, "fatal") == 0)
        abort(); /* asked for by a test run: a message must not pass unseen */
    return VK_FALSE;
}

esp_status esp_vk_instance_create(VkInstance *out, VkDebugUtilsMessengerEXT *messenger, bool validate,
                                  struct esp_vk *vk, struct esp_err *err)
{
    static const VkValidationFeatureEnableEXT sync[] = {
        VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT};
    const char *layer = "VK_LAYER_KHRONOS_validation";
    const char *exts[2];
    uint32_t n_ext = 0;
    VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                             .pApplicationName = "espalier",
                             .apiVersion = VK_API_VERSION_1_2};
    VkDebugUtilsMessengerCreateInfoEXT dbg = {
        .sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
        .messageSeverity =
            VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
        .messageType =
            VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_TYPE_GENERAL_BIT_EXT,
        .pfnUserCallback = on_validation,
        .pUserData = vk};
    VkValidationFeaturesEXT features = {.sType = VK_STRUCTURE_TYPE_VALIDATION_FEATURES_EXT,
                                        .pNext = &dbg,
                                        .enabledValidationFeatureCount = 1,
                                        .pEnabledValidationFeatures = sync};
    VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                 .pApplicationInfo = &app,
                                 .ppEnabledExtensionNames = exts};
    esp_status st;

    if (validate) {
        info.enabledLayerCount = 1;
        info.ppEnabledLayerNames = &layer;
        info.pNext = &features;
        exts[n_ext++] = VK_EXT_DEBUG_UTILS_EXTENSION_NAME;
        exts[n_ext++] = VK_EXT_VALIDATION_FEATURES_EXTENSION_NAME;
    }
    info.enabledExtensionCount = n_ext;
    st = esp_vk_check(vkCreateInstance(&info, NULL, out), "vkCreateInstance", err);
    if (st) {
        *out = VK_NULL_HANDLE;
        esp_err_prefix(err, validate ? "with the validation layer (package vulkan-validationlayers): "
                                     : "is a Vulkan driver installed (package mesa-vulkan-drivers)? ");
        return st;
    }
    if (validate) {
        PFN_vkCreateDebugUtilsMessengerEXT create =
            (PFN_vkCreateDebugUtilsMessengerEXT)vkGetInstanceProcAddr(*out, "vkCreateDebugUtilsMessengerEXT");
        if (create)
            st = esp_vk_check(create(*out, &dbg, NULL, messenger), "vkCreateDebugUtilsMessengerEXT", err);
    }
    return st;
}

void esp_vk_instance_destroy(VkInstance instance, VkDebugUtilsMessengerEXT messenger)
{
    if (messenger) {
        PFN_vkDestroyDebugUtilsMessengerEXT destroy =
            (PFN_vkDestroyDebugUtilsMessengerEXT)vkGetInstanceProcAddr(instance,
                                                                       "vkDestroyDebugUtilsMessengerEXT");
        if (destroy)
            destroy(instance, messenger, NULL);
    }
    if (instance)
        vkDestroyInstance(instance, NULL);
}
