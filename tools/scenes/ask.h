/**
 * What can be asked about a scene, in PaliGemma's prompts, with the right answers.
 */
#ifndef ESP_TOOLS_SCENES_ASK_H
#define ESP_TOOLS_SCENES_ASK_H

#include "tools/scenes/draw.h"

enum esp_task { ESP_TASK_CAPTION, ESP_TASK_ANSWER, ESP_TASK_DETECT, ESP_TASK_SEGMENT, ESP_TASK_OCR };

enum { ESP_MAX_ASKED = 16, ESP_MAX_LISTED = 2 * ESP_SCENE_MAX_OBJECTS };

/** One object of the answer to detect or segment. */
struct esp_listed {
    uint32_t object; /* index in the scene */
    char label[24];
};

struct esp_asked {
    enum esp_task task;
    char prompt[96];
    char answer[640]; /* of segment: `<seg@K>` stands for the tokens of object K's mask */
    uint32_t n_listed;
    struct esp_listed listed[ESP_MAX_LISTED]; /* of detect and segment, in the order of the answer */
};

/**
 * Asks about a drawn scene: a caption, some questions, two things to detect, one or two to segment, the text if
 * there is one. Objects are spoken of from left to right, by the middles of what can be seen of them.
 *
 * @param out      room for ESP_MAX_ASKED
 * @param scene    its random numbers are drawn from
 * @param drawing  of that scene
 * @return how many
 */
uint32_t esp_ask_about(struct esp_asked *out, struct esp_scene *scene, const struct esp_drawing *drawing);

#endif
