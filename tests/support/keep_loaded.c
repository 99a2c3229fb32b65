/*
 * Linked into programs of sanitizer builds that open Vulkan devices: libraries stay loaded.
 *
 * The loader unloads a driver with its instance. What the driver still held by its own global variables then looks
 * lost to the leak checker, in a module without a name. Kept loaded, it is either reachable or named.
 */
int dlclose(void *handle);

int dlclose(void *handle)
{
    (void)handle;
    return 0;
}
