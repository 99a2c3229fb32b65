/**
 * The subcommands. Each takes what follows "espalier", its own name as argv[0], and returns the exit status:
 * 0 done, 1 failed, 2 bad usage, 128 + n ended by signal n.
 */
#ifndef ESP_CLI_COMMAND_H
#define ESP_CLI_COMMAND_H

int esp_command_run(int argc, char **argv);
int esp_command_chat(int argc, char **argv);
int esp_command_score(int argc, char **argv);
int esp_command_eval(int argc, char **argv);
int esp_command_compare(int argc, char **argv);
int esp_command_quantize(int argc, char **argv);
int esp_command_up(int argc, char **argv);
int esp_command_cluster(int argc, char **argv);
int esp_command_tokenize(int argc, char **argv);
int esp_command_devices(int argc, char **argv);
int esp_command_bench(int argc, char **argv);
int esp_command_verify(int argc, char **argv);
int esp_command_keygen(int argc, char **argv);

#endif
