/**
 * A matrix into quantised rows in a file, on several threads.
 */
#ifndef ESP_CLI_QUANTIZE_ROWS_H
#define ESP_CLI_QUANTIZE_ROWS_H

#include <stdio.h>

#include "model/quant.h"
#include "model/tensor.h"
#include "proto/status.h"

/**
 * @param path  the file's, for messages
 * @param type  ESP_W_Q8 or ESP_W_Q4
 * @param off, all  gets sum (quantised - stored)^2 and sum stored^2 added; the same whatever the number of threads
 * Errors: ESP_E_FORMAT (a weight that the type cannot hold: tensor, row, column), ESP_E_IO, ESP_E_NOMEM.
 */
esp_status esp_quantize_rows(FILE *file, const char *path, const struct esp_tensor *tensor,
                             enum esp_wtype type, uint32_t n_thread, double *off, double *all,
                             struct esp_err *err);

#endif
