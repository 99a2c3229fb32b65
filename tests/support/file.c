#include "tests/support/file.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

uint8_t *esp_slurp(size_t *n_bytes, const char *path, ...)
{
    char name[512];
    va_list args;
    FILE *file;
    uint8_t *bytes = NULL;
    long size;

    va_start(args, path);
    vsnprintf(name, sizeof name, path, args);
    va_end(args);
    file = fopen(name, "rb");
    if (!file || fseek(file, 0, SEEK_END) || (size = ftell(file)) < 0 || fseek(file, 0, SEEK_SET) ||
        !(bytes = malloc(size ? (size_t)size : 1)) || fread(bytes, 1, (size_t)size, file) != (size_t)size) {
        fprintf(stderr, "%s: cannot be read whole\n", name);
        exit(1);
    }
    fclose(file);
    *n_bytes = (size_t)size;
    return bytes;
}
