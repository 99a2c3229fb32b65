/** How long tests wait for what must come. */
#ifndef ESP_TESTS_SUPPORT_PATIENCE_H
#define ESP_TESTS_SUPPORT_PATIENCE_H

/* A limit for hangs alone: a CPU driver compiles one attention kernel for ten seconds, in a process with sanitizers for
 * forty, and a machine that runs other tests too takes twice that. ctest's limits (esp_test) lie above it. */
#define ESP_PATIENCE_MS 240000

#endif
