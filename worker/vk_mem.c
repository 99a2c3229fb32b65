#include "worker/vk_mem.h"

#include <string.h>
#include <sys/mman.h>

#include "worker/vk_cmd.h"

#define HUGE_PAGE ((size_t)2 << 20)
#define OWN_BYTES ((size_t)64 << 10) /* buffers from this size on may have memory of ours */

/* Memory with a catch: needs features that we do not turn on, or is not there all the time. */
#define ODD_MEMORY                                                                                           \
    (VK_MEMORY_PROPERTY_LAZILY_ALLOCATED_BIT | VK_MEMORY_PROPERTY_PROTECTED_BIT |                            \
     VK_MEMORY_PROPERTY_DEVICE_COHERENT_BIT_AMD | VK_MEMORY_PROPERTY_DEVICE_UNCACHED_BIT_AMD)

/* First memory type of `bits` that has all of `must`; those with `nice` too are preferred. */
static bool pick_type(uint32_t *out, const struct esp_vk *vk, uint32_t bits, VkMemoryPropertyFlags must,
                      VkMemoryPropertyFlags nice)
{
    bool found = false;

    for (uint32_t i = 0; i < vk->mem_props.memoryTypeCount; i++) {
        VkMemoryPropertyFlags have = vk->mem_props.memoryTypes[i].propertyFlags;
        if (!(bits >> i & 1) || (have & must) != must || have & ODD_MEMORY)
            continue;
        if ((have & nice) == nice) {
            *out = i;
            return true;
        }
        if (!found)
            *out = i;
        found = true;
    }
    return found;
}

static bool pick_kind(uint32_t *out, const struct esp_vk *vk, uint32_t bits, enum esp_buf_kind kind)
{
    const VkMemoryPropertyFlags host =
        VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;

    switch (kind) {
    case ESP_BUF_DEVICE:
        if (vk->uma) /* must be mapped, and every type is the machine's own memory */
            return pick_type(out, vk, bits, host, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT);
        return pick_type(out, vk, bits, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, 0) ||
               pick_type(out, vk, bits, 0, 0);
    case ESP_BUF_STEP:
        return pick_type(out, vk, bits, host, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT);
    case ESP_BUF_UPLOAD:
        return pick_type(out, vk, bits, host, 0);
    case ESP_BUF_READBACK:
        return pick_type(out, vk, bits, host, VK_MEMORY_PROPERTY_HOST_CACHED_BIT);
    }
    return false;
}

/*
 * On a CPU driver, memory of ours for it to use: of huge pages, and pages of files may take their place (worker/packed.h). Its own
 * may be of small ones for good: newer lavapipe takes a file in memory, which MADV_HUGEPAGE does not reach. Faults of small
 * pages take longer than packing what goes into them.
 */
static bool own_memory(struct esp_buf *b, const struct esp_vk *vk, uint64_t n_bytes)
{
    const size_t n = esp_round_up(n_bytes, HUGE_PAGE), room = n + HUGE_PAGE;
    char *at, *from;

    if (!vk->host_align || vk->host_align > HUGE_PAGE || n_bytes < OWN_BYTES)
        return false;
    at = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return false;
    from = (char *)esp_round_up((uintptr_t)at, HUGE_PAGE);
    if (from > at)
        munmap(at, (size_t)(from - at));
    if (from + n < at + room)
        munmap(from + n, (size_t)(at + room - (from + n)));
    if (n_bytes >= HUGE_PAGE)
        (void)madvise(from, n, MADV_HUGEPAGE); /* a hint, no more */
    b->own = from;
    b->n_own = n;
    return true;
}

/* Has the driver take the buffer's own memory; false: it does not, for whatever reason. */
static bool import_own(struct esp_buf *b, struct esp_vk *vk, uint32_t bits)
{
    PFN_vkGetMemoryHostPointerPropertiesEXT get =
        (PFN_vkGetMemoryHostPointerPropertiesEXT)vkGetDeviceProcAddr(vk->dev,
                                                                     "vkGetMemoryHostPointerPropertiesEXT");
    const VkExternalMemoryHandleTypeFlagBits kind = VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT;
    VkMemoryHostPointerPropertiesEXT props = {.sType = VK_STRUCTURE_TYPE_MEMORY_HOST_POINTER_PROPERTIES_EXT};
    VkMemoryAllocateFlagsInfo flags = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
                                       .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT};
    VkImportMemoryHostPointerInfoEXT from = {.sType = VK_STRUCTURE_TYPE_IMPORT_MEMORY_HOST_POINTER_INFO_EXT,
                                             .pNext = &flags,
                                             .handleType = kind,
                                             .pHostPointer = b->own};
    VkMemoryAllocateInfo alloc = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .pNext = &from, .allocationSize = b->n_own};

    if (!get || get(vk->dev, kind, b->own, &props) != VK_SUCCESS ||
        !pick_kind(&alloc.memoryTypeIndex, vk, bits & props.memoryTypeBits, ESP_BUF_DEVICE) ||
        vkAllocateMemory(vk->dev, &alloc, NULL, &b->mem) != VK_SUCCESS)
        return false;
    b->map = b->own;
    return true;
}

static void drop_own(struct esp_buf *b)
{
    if (b->own)
        munmap(b->own, b->n_own);
    b->own = NULL;
    b->n_own = 0;
}

esp_status esp_buf_create(struct esp_buf *out, struct esp_vk *vk, enum esp_buf_kind kind,
                          VkDeviceSize n_bytes, VkFormat format, const char *what, struct esp_err *err)
{
    const bool texel = format != VK_FORMAT_UNDEFINED && esp_vk_has_texels(vk->cls);
    const VkExternalMemoryBufferCreateInfo external = {
        .sType = VK_STRUCTURE_TYPE_EXTERNAL_MEMORY_BUFFER_CREATE_INFO,
        .handleTypes = VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT};
    VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                               .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT |
                                        VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT |
                                        VK_BUFFER_USAGE_INDIRECT_BUFFER_BIT |
                                        VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT |
                                        (texel ? VK_BUFFER_USAGE_STORAGE_TEXEL_BUFFER_BIT : 0)};
    VkMemoryAllocateFlagsInfo flags = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
                                       .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT};
    VkMemoryAllocateInfo alloc = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .pNext = &flags};
    VkBufferDeviceAddressInfo addr = {.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO};
    VkMemoryRequirements req;
    esp_status st;
    VkResult r;

    memset(out, 0, sizeof *out);
    n_bytes = n_bytes ? (n_bytes + 15) & ~(VkDeviceSize)15 : 16;
    if (n_bytes > vk->max_alloc_bytes)
        return esp_fail(err, ESP_E_NOMEM, "%s: %.1f MiB in one buffer; this device takes at most %.1f MiB",
                        what, (double)n_bytes / (1 << 20), (double)vk->max_alloc_bytes / (1 << 20));
    info.size = out->n_bytes = n_bytes;
    if (kind == ESP_BUF_DEVICE && own_memory(out, vk, n_bytes))
        info.pNext = &external;
    st = esp_vk_check(vkCreateBuffer(vk->dev, &info, NULL, &out->buf), "vkCreateBuffer", err);
    if (st)
        goto done;
    vkGetBufferMemoryRequirements(vk->dev, out->buf, &req);
    if (out->own && (req.size > out->n_own || !import_own(out, vk, req.memoryTypeBits))) {
        drop_own(out);
        vkDestroyBuffer(vk->dev, out->buf, NULL); /* it was made for memory like that alone */
        out->buf = VK_NULL_HANDLE;
        info.pNext = NULL;
        st = esp_vk_check(vkCreateBuffer(vk->dev, &info, NULL, &out->buf), "vkCreateBuffer", err);
        if (st)
            goto done;
        vkGetBufferMemoryRequirements(vk->dev, out->buf, &req);
    }
    alloc.allocationSize = req.size;
    if (!out->mem && !pick_kind(&alloc.memoryTypeIndex, vk, req.memoryTypeBits, kind)) {
        st = esp_fail(err, ESP_E_DEVICE, "no memory type fits");
        goto done;
    }
    if (!out->mem) {
        r = vkAllocateMemory(vk->dev, &alloc, NULL, &out->mem);
        /* the window through which the host reaches the device's memory is small on many machines, and may be full */
        if (r != VK_SUCCESS && kind == ESP_BUF_STEP &&
            pick_kind(&alloc.memoryTypeIndex, vk, req.memoryTypeBits, ESP_BUF_UPLOAD))
            r = vkAllocateMemory(vk->dev, &alloc, NULL, &out->mem);
        st = esp_vk_check(r, "vkAllocateMemory", err);
    }
    if (st)
        goto done;
    st = esp_vk_check(vkBindBufferMemory(vk->dev, out->buf, out->mem, 0), "vkBindBufferMemory", err);
    if (st)
        goto done;
    addr.buffer = out->buf;
    out->addr = vkGetBufferDeviceAddress(vk->dev, &addr);
    if (out->addr % 16) { /* kernels load whole texels; no driver is known to align less */
        st = esp_fail(err, ESP_E_UNSUPPORTED, "the driver aligns buffers to less than 16 bytes");
        goto done;
    }
    if (!out->map &&
        vk->mem_props.memoryTypes[alloc.memoryTypeIndex].propertyFlags &
            VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT &&
        (kind != ESP_BUF_DEVICE || vk->uma)) {
        st = esp_vk_check(vkMapMemory(vk->dev, out->mem, 0, VK_WHOLE_SIZE, 0, &out->map), "vkMapMemory", err);
        if (st)
            goto done;
        /* On a CPU driver huge pages halve the time to fill gigabytes; a hint, no more. */
        if (kind == ESP_BUF_DEVICE)
            (void)madvise(out->map, n_bytes, MADV_HUGEPAGE);
    }
    if (texel) {
        VkBufferViewCreateInfo view = {.sType = VK_STRUCTURE_TYPE_BUFFER_VIEW_CREATE_INFO,
                                       .buffer = out->buf,
                                       .format = format,
                                       .range = n_bytes};
        st = esp_vk_check(vkCreateBufferView(vk->dev, &view, NULL, &out->view), "vkCreateBufferView", err);
    }
done:
    if (st) {
        esp_err_prefix(err, "%s, %.1f MiB: ", what, (double)n_bytes / (1 << 20));
        esp_buf_destroy(out, vk);
    }
    return st;
}

void esp_buf_destroy(struct esp_buf *b, struct esp_vk *vk)
{
    if (b->view)
        vkDestroyBufferView(vk->dev, b->view, NULL);
    if (b->buf)
        vkDestroyBuffer(vk->dev, b->buf, NULL);
    if (b->mem)
        vkFreeMemory(vk->dev, b->mem, NULL); /* unmaps */
    drop_own(b);
    memset(b, 0, sizeof *b);
}

esp_status esp_upload_init(struct esp_upload *up, struct esp_vk *vk, struct esp_err *err)
{
    esp_status st = ESP_OK;

    memset(up, 0, sizeof *up);
    up->vk = vk;
    if (vk->uma)
        return ESP_OK; /* everything is mapped */
    for (uint32_t i = 0; !st && i < 2; i++) {
        st = esp_buf_create(&up->lane[i].staging, vk, ESP_BUF_UPLOAD, ESP_UPLOAD_BYTES, VK_FORMAT_UNDEFINED,
                            "staging buffer", err);
        if (!st)
            st = esp_cmd_alloc(&up->lane[i].cmd, vk, err);
    }
    if (st)
        esp_upload_finish(up);
    return st;
}

void esp_upload_finish(struct esp_upload *up)
{
    if (!up->vk)
        return;
    if (up->lane[0].busy_until || up->lane[1].busy_until)
        vkDeviceWaitIdle(up->vk->dev);
    for (uint32_t i = 0; i < 2; i++) {
        esp_cmd_free(&up->lane[i].cmd, up->vk);
        esp_buf_destroy(&up->lane[i].staging, up->vk);
    }
    memset(up, 0, sizeof *up);
}

static esp_status lane_wait(struct esp_upload *up, struct esp_upload_lane *lane, struct esp_err *err)
{
    esp_status st = lane->busy_until ? esp_submit_done(up->vk, lane->busy_until, 1, err) : ESP_OK;

    if (!st)
        lane->busy_until = 0;
    return st;
}

esp_status esp_upload_map(void **out, struct esp_upload *up, struct esp_buf *to, VkDeviceSize at,
                          VkDeviceSize n_bytes, struct esp_err *err)
{
    esp_status st = ESP_OK;

    up->to = to;
    up->at = at;
    up->n_bytes = n_bytes;
    *out = NULL;
    if (to->map)
        *out = (char *)to->map + at;
    else if (!(st = lane_wait(up, &up->lane[up->turn], err)))
        *out = up->lane[up->turn].staging.map;
    return st;
}

esp_status esp_upload_commit(struct esp_upload *up, struct esp_err *err)
{
    struct esp_upload_lane *lane = &up->lane[up->turn];
    VkBufferCopy copy = {.dstOffset = up->at, .size = up->n_bytes};
    esp_status st;

    if (up->to->map || up->n_bytes == 0)
        return ESP_OK;
    if ((st = esp_cmd_begin(lane->cmd, true, err)))
        return st;
    vkCmdCopyBuffer(lane->cmd, lane->staging.buf, up->to->buf, 1, &copy);
    esp_cmd_barrier_all(lane->cmd);
    if ((st = esp_cmd_end(lane->cmd, err)) ||
        (st = esp_submit(&lane->busy_until, up->vk, &lane->cmd, 1, false, err))) {
        lane->busy_until = 0; /* nothing was set off */
        return st;
    }
    up->turn ^= 1;
    return ESP_OK;
}

esp_status esp_upload_wait(struct esp_upload *up, struct esp_err *err)
{
    esp_status st = lane_wait(up, &up->lane[0], err);

    return st ? st : lane_wait(up, &up->lane[1], err);
}
