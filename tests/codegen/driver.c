/* Uses a C library in every way that its header allows, and checks what comes of it.

   driver run FOLDER THREADS [WEIGHTS]: inputs from FOLDER/inK, outputs to FOLDER/outK; all ways of
   running must give the same outputs. driver once …: the same, but runs once. driver init [WEIGHTS]:
   prints the number of the error.
   Compiled with -DLOWER_NAME=name -DUPPER_NAME=NAME -DHEADER="name.h". */

#define _DEFAULT_SOURCE 1
#define _POSIX_C_SOURCE 200809L
#include HEADER
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define T(name) JOIN(LOWER_NAME, name)
#define M(name) JOIN(UPPER_NAME, name)
#define MAX_TENSORS 16

#define CHECK(condition) \
  do { \
    if (!(condition)) { \
      fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
      exit(1); \
    } \
  } while (0)

typedef struct tensors {
  T(inputs) inputs;
  T(outputs) outputs;
  unsigned char *memory[MAX_TENSORS];
} tensors;

static unsigned char *expected[MAX_TENSORS];
static const char *weights, *folder;
static int32_t threads;

static const T(tensor) *describe(int i)
{
  return i < M(INPUTS) ? T(input)(i) : T(output)(i - M(INPUTS));
}

static T(options) with_defaults(void)
{
  T(options) options;
  memset(&options, 0, sizeof options);
  options.threads = threads;
#ifdef WEIGHTS_IN_FILE
  options.weights_path = weights;
#endif
  return options;
}

/* The structs hold nothing but pointers. */
static void set(tensors *all, int i, void *address)
{
  char *place = i < M(INPUTS) ? (char *)&all->inputs + i * sizeof(void *)
                              : (char *)&all->outputs + (i - M(INPUTS)) * sizeof(void *);
  memcpy(place, &address, sizeof address);
}

static void transfer(unsigned char *memory, size_t bytes, const char *kind, int number, int write)
{
  char path[4096];
  FILE *file;
  snprintf(path, sizeof path, "%s/%s%d", folder, kind, number);
  file = fopen(path, write ? "wb" : "rb");
  CHECK(file != NULL);
  CHECK((write ? fwrite(memory, 1, bytes, file) : fread(memory, 1, bytes, file)) == bytes);
  CHECK(fclose(file) == 0);
}

/* Inputs from files and cleared outputs, `shift` bytes off alignment. */
static tensors make(size_t shift)
{
  tensors all;
  int i;
  memset(&all, 0, sizeof all);
  for (i = 0; i < M(INPUTS) + M(OUTPUTS); i++) {
    size_t bytes = describe(i)->bytes;
    void *memory;
    CHECK(posix_memalign(&memory, 64, bytes + 64) == 0);
    memset(memory, 0xA5, bytes + 64);
    all.memory[i] = memory;
    if (i < M(INPUTS))
      transfer(all.memory[i] + shift, bytes, "in", i, 0);
    set(&all, i, all.memory[i] + shift);
  }
  return all;
}

static void drop(tensors *all)
{
  int i;
  for (i = 0; i < M(INPUTS) + M(OUTPUTS); i++)
    free(all->memory[i]);
}

static void check_outputs(const tensors *all, size_t shift)
{
  int i;
  for (i = 0; i < M(OUTPUTS); i++) {
    const unsigned char *found = all->memory[M(INPUTS) + i];
    size_t bytes = T(output)(i)->bytes;
    CHECK(memcmp(found + shift, expected[i], bytes) == 0);
    CHECK(found[shift + bytes] == 0xA5);
  }
}

static void run_and_check(T(program) *program, size_t shift)
{
  tensors all = make(shift);
  CHECK(T(run)(program, &all.inputs, &all.outputs) == M(OK));
  check_outputs(&all, shift);
  drop(&all);
}

static void *run_often(void *program)
{
  int i;
  for (i = 0; i < 10; i++)
    run_and_check(program, 0);
  return NULL;
}

static void *run_if_free(void *program)
{
  tensors all = make(0);
  int i;
  for (i = 0; i < 10; i++) {
    int error = T(run)(program, &all.inputs, &all.outputs);
    CHECK(error == M(OK) || error == M(ERROR_BUSY));
  }
  drop(&all);
  return NULL;
}

static void in_two_threads(void *(*body)(void *), T(program) *first, T(program) *second)
{
  pthread_t other;
  CHECK(pthread_create(&other, NULL, body, first) == 0);
  body(second);
  CHECK(pthread_join(other, NULL) == 0);
}

static void check_arguments(void)
{
  T(options) options = with_defaults();
  T(program) *program = NULL;
  tensors all = make(0);
  int i;
  CHECK(T(init)(NULL, &options) == M(ERROR_ARGUMENT));
  options.threads = M(MAX_THREADS) + 1;
  CHECK(T(init)(&program, &options) == M(ERROR_THREADS) && program == NULL);
  options.threads = -1;
  CHECK(T(init)(&program, &options) == M(ERROR_THREADS));
  options.threads = threads;
  CHECK(T(init)(&program, &options) == M(OK));
  CHECK(T(run)(NULL, &all.inputs, &all.outputs) == M(ERROR_ARGUMENT));
  CHECK(T(run)(program, NULL, &all.outputs) == M(ERROR_ARGUMENT));
  CHECK(T(run)(program, &all.inputs, NULL) == M(ERROR_ARGUMENT));
  for (i = 0; i < M(INPUTS) + M(OUTPUTS); i++) {
    set(&all, i, NULL);
    CHECK(T(run)(program, &all.inputs, &all.outputs) == M(ERROR_ARGUMENT));
    set(&all, i, all.memory[i]);
  }
  if (M(OUTPUTS) > 1) {
    set(&all, M(INPUTS) + 1, all.memory[M(INPUTS)]);
    CHECK(T(run)(program, &all.inputs, &all.outputs) == M(ERROR_OVERLAP));
  }
  drop(&all);
  T(free)(program);
  T(free)(NULL);
  CHECK(T(input)(-1) == NULL && T(input)(M(INPUTS)) == NULL && T(output)(M(OUTPUTS)) == NULL);
  for (i = -1; i < 20; i++)
    CHECK(strlen(T(strerror)(i)) > 5);
}

static void check_workspace(void)
{
  T(options) options = with_defaults();
  T(program) *program, *second;
  void *memory;
  CHECK(posix_memalign(&memory, M(WORKSPACE_ALIGNMENT), M(WORKSPACE_BYTES) + 64) == 0);
  memset(memory, 0xA5, M(WORKSPACE_BYTES) + 64);
  options.workspace = (char *)memory + 8;
  options.workspace_bytes = M(WORKSPACE_BYTES) + 56;
  CHECK(T(init)(&program, &options) == M(ERROR_ALIGNMENT));
  options.workspace = memory;
  options.workspace_bytes = M(WORKSPACE_BYTES) - 1;
  CHECK(T(init)(&program, &options) == M(ERROR_WORKSPACE));
  options.workspace_bytes = M(WORKSPACE_BYTES);
  CHECK(T(init)(&program, &options) == M(OK));
  CHECK((void *)program == memory);
  run_and_check(program, 0);
  run_and_check(program, 4);
  options.workspace = NULL;
  CHECK(T(init)(&second, &options) == M(OK));
  run_and_check(second, 0);
  run_and_check(program, 0);
  CHECK(((unsigned char *)memory)[M(WORKSPACE_BYTES)] == 0xA5);
  T(free)(program);
  T(free)(second);
  free(memory);
}

/* Each output where an input lies, if it has room there. */
static void check_overlap(T(program) *program)
{
  int i, j;
  for (i = 0; i < M(OUTPUTS); i++)
    for (j = 0; j < M(INPUTS); j++) {
      size_t bytes = T(output)(i)->bytes;
      if (bytes <= T(input)(j)->bytes) {
        tensors all = make(0);
        set(&all, M(INPUTS) + i, all.memory[j]);
        CHECK(T(run)(program, &all.inputs, &all.outputs) == M(OK));
        CHECK(memcmp(all.memory[j], expected[i], bytes) == 0);
        drop(&all);
      }
    }
}

static void run_all(int thorough)
{
  T(options) options = with_defaults();
  T(program) *first, *second;
  tensors all = make(0);
  int i;
  CHECK(T(init)(&first, &options) == M(OK));
  CHECK(T(run)(first, &all.inputs, &all.outputs) == M(OK));
  for (i = 0; i < M(OUTPUTS); i++) {
    expected[i] = all.memory[M(INPUTS) + i];
    transfer(expected[i], T(output)(i)->bytes, "out", i, 1);
  }
  if (!thorough) {
    T(free)(first);
    drop(&all);
    return;
  }
  check_arguments();
  check_workspace();
  check_overlap(first);
  run_and_check(first, 1);
  run_and_check(first, 32);
  CHECK(T(init)(&second, &options) == M(OK) && second != first);
  in_two_threads(run_often, first, second);
  in_two_threads(run_if_free, first, first);
  T(free)(second);
  for (i = 0; i < 20; i++) {
    CHECK(T(init)(&second, &options) == M(OK));
    run_and_check(second, 0);
    T(free)(second);
  }
  run_and_check(first, 0);
  T(free)(first);
  drop(&all);
}

int main(int argc, char **argv)
{
  CHECK(argc >= 2);
  if (strcmp(argv[1], "init") == 0) {
    T(options) options = with_defaults();
    T(program) *program;
#ifdef WEIGHTS_IN_FILE
    options.weights_path = argc > 2 ? argv[2] : NULL;
#endif
    printf("%d\n", T(init)(&program, &options));
    T(free)(program);
    return 0;
  }
  CHECK(argc >= 4);
  folder = argv[2];
  threads = atoi(argv[3]);
  weights = argc > 4 ? argv[4] : NULL;
  run_all(strcmp(argv[1], "run") == 0);
  return 0;
}
