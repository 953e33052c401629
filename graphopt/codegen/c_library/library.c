/* model.c: memory, threads and checks around the machine code of one compiled model.

   Made by graphopt. libmodel.a holds this file's object and model_program.o, the machine code. To
   compile this file with flags of your own, link its object before libmodel.a. */

#define _DEFAULT_SOURCE 1
#define _POSIX_C_SOURCE 200809L

#include "model.h"

#include <stdlib.h>
#include <string.h>

@CONSTANTS@

#if THREADS > 1
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#endif
#if WEIGHTS_IN_FILE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif
#if TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#else
#include <sys/auxv.h>
#endif

/* The machine code. */
void model_program_run(void *context);
#if THREADS > 1
int32_t model_program_serve(void *context, int32_t task);
#endif
#if WEIGHT_BYTES && !WEIGHTS_IN_FILE
extern const unsigned char model_program_weights[];
#endif

/* One entry of the table that the machine code reads its arguments from. */
typedef struct slot {
  int64_t kind;
  union {
    int64_t number;
    const void *address;
  } value;
} slot;

#define OWN_LINE __attribute__((aligned(64)))

#if THREADS > 1
typedef struct semaphore {
  OWN_LINE sem_t value;
} semaphore;

typedef struct worker {
  pthread_t thread;
  model_program *program;
  int32_t task;
} worker;
#endif

struct model_program {
  OWN_LINE slot context[SLOT_COUNT];
  OWN_LINE int64_t barrier;
  OWN_LINE int64_t solo_barrier;
#if THREADS > 1
  semaphore semaphores[THREADS];
  worker workers[THREADS];
  int32_t semaphore_count, worker_count;
#endif
#if WEIGHTS_IN_FILE
  void *mapped;
#endif
  unsigned char *staging;
  void *owned;
  int busy;
};

typedef char handle_has_room[sizeof(struct model_program) <= HANDLE_BYTES ? 1 : -1];
typedef char slots_are_16_bytes[sizeof(slot) == 16 ? 1 : -1];
#if THREADS > 1
typedef char semaphores_are_64_bytes[sizeof(semaphore) == 64 ? 1 : -1];
#endif

static const size_t staging_offsets[] = STAGING_OFFSETS;

@TENSORS@

const model_tensor *model_input(int32_t index)
{
  return index >= 0 && index < MODEL_INPUTS ? &tensors[index] : NULL;
}

const model_tensor *model_output(int32_t index)
{
  return index >= 0 && index < MODEL_OUTPUTS ? &tensors[MODEL_INPUTS + index] : NULL;
}

const char *model_strerror(int error)
{
  switch (error) {
  case MODEL_OK: return "no error";
  case MODEL_ERROR_ARGUMENT: return "an argument, or the address of a tensor, is NULL";
  case MODEL_ERROR_THREADS: return "the number of threads is not from 0 to MODEL_MAX_THREADS";
  case MODEL_ERROR_ALIGNMENT: return "the workspace is not aligned to MODEL_WORKSPACE_ALIGNMENT";
  case MODEL_ERROR_WORKSPACE: return "the workspace has fewer than MODEL_WORKSPACE_BYTES bytes";
  case MODEL_ERROR_PROCESSOR:
    return "the processor, or the system, does not offer what the program needs: " FEATURES;
  case MODEL_ERROR_MEMORY: return "there is no memory for the workspace";
  case MODEL_ERROR_SYSTEM: return "the system starts no more threads";
  case MODEL_ERROR_NO_WEIGHTS: return "the weights file cannot be opened or mapped";
  case MODEL_ERROR_WEIGHTS: return "the weights file is truncated, altered or of another model";
  case MODEL_ERROR_OVERLAP: return "two outputs share memory";
  case MODEL_ERROR_BUSY: return "the program is running in another thread";
  default: return "unknown error";
  }
}

/* Whether the processor has all that LLVM was told to use. */
static int processor_fits(void)
{
#if defined(__x86_64__)
  static const uint32_t needs[][5] = NEEDS; /* leaf, subleaf, register, bits, state */
  uint32_t found[4] = {0}, saved = 0, high;
  size_t i;
  if (__get_cpuid(1, &found[0], &found[1], &found[2], &found[3]) && (found[2] >> 27 & 1)) {
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    (void)high;
  }
  for (i = 0; i < sizeof needs / sizeof *needs; i++) {
    const uint32_t *need = needs[i];
    if (!__get_cpuid_count(need[0], need[1], &found[0], &found[1], &found[2], &found[3]))
      return 0;
    if ((found[need[2]] & need[3]) != need[3] || (saved & need[4]) != need[4])
      return 0;
  }
#if TILES
  /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA: for all threads of the process from now on. */
  if (syscall(SYS_arch_prctl, 0x1023, 18))
    return 0;
#endif
#else
  static const unsigned long needs[][2] = NEEDS; /* entry of the auxiliary vector, bits */
  size_t i;
  for (i = 0; i < sizeof needs / sizeof *needs; i++)
    if ((getauxval(needs[i][0]) & needs[i][1]) != needs[i][1])
      return 0;
#endif
  return 1;
}

#if WEIGHTS_IN_FILE
#include "blake2b.inc"

static int digest_fits(const unsigned char *data, size_t size)
{
  static const unsigned char expected[32] = WEIGHTS_DIGEST;
  static const unsigned char parameters[64] = {32, 0, 1, 1};
  unsigned char found[32];
  blake2b hash;
  blake2b_begin(&hash, parameters, 0);
  blake2b_update(&hash, data, size);
  blake2b_end(&hash, found);
  return memcmp(found, expected, sizeof expected) == 0;
}

static int map_weights(model_program *program, const char *path)
{
  struct stat about;
  void *mapped;
  int file, unfit;
  if (path == NULL)
    return MODEL_ERROR_NO_WEIGHTS;
  file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0)
    return MODEL_ERROR_NO_WEIGHTS;
  unfit = fstat(file, &about) || !S_ISREG(about.st_mode);
  if (unfit || about.st_size != (off_t)WEIGHT_BYTES) {
    close(file);
    return unfit ? MODEL_ERROR_NO_WEIGHTS : MODEL_ERROR_WEIGHTS;
  }
  mapped = mmap(NULL, WEIGHT_BYTES, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (mapped == MAP_FAILED)
    return MODEL_ERROR_NO_WEIGHTS;
  program->mapped = mapped;
  return digest_fits(mapped, WEIGHT_BYTES) ? MODEL_OK : MODEL_ERROR_WEIGHTS;
}
#endif

#if THREADS > 1
static void *work(void *argument)
{
  worker *self = argument;
  model_program_serve(self->program->context, self->task);
  return NULL;
}

static int start_workers(model_program *program, int32_t threads)
{
  pthread_attr_t attributes;
  sigset_t all, before;
  int failed;
  for (; program->semaphore_count < threads; program->semaphore_count++)
    if (sem_init(&program->semaphores[program->semaphore_count].value, 0, 0))
      return MODEL_ERROR_SYSTEM;
  if (threads == 1)
    return MODEL_OK;
  if (pthread_attr_init(&attributes))
    return MODEL_ERROR_SYSTEM;
  /* Kernels keep some scratch on the stack, which is small by default with some libraries. */
  (void)pthread_attr_setstacksize(&attributes, (size_t)1 << 20);
  /* Signals are for the program's own threads. */
  sigfillset(&all);
  failed = pthread_sigmask(SIG_SETMASK, &all, &before);
  while (!failed && program->worker_count < threads - 1) {
    worker *next = &program->workers[program->worker_count];
    next->program = program;
    next->task = program->worker_count + 1;
    failed = pthread_create(&next->thread, &attributes, work, next);
    program->worker_count += !failed;
  }
  (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
  (void)pthread_attr_destroy(&attributes);
  return failed ? MODEL_ERROR_SYSTEM : MODEL_OK;
}

static void stop_workers(model_program *program)
{
  int32_t i;
  program->context[STOP].value.number = 1;
  for (i = 0; i < program->worker_count; i++)
    sem_post(&program->semaphores[i + 1].value);
  for (i = 0; i < program->worker_count; i++)
    pthread_join(program->workers[i].thread, NULL);
  for (i = 0; i < program->semaphore_count; i++)
    sem_destroy(&program->semaphores[i].value);
}
#endif

static int prepare(model_program *program, const model_options *options, int32_t threads)
{
  slot *context = program->context;
  context[NUM_TASKS].value.number = threads;
  context[BARRIER].value.address = &program->barrier;
  context[SOLO_BARRIER].value.address = &program->solo_barrier;
  context[ARENA].value.address = (unsigned char *)program + HANDLE_BYTES;
  program->staging = (unsigned char *)program + HANDLE_BYTES + ARENA_BYTES;
#if WEIGHTS_IN_FILE
  {
    int failed = map_weights(program, options->weights_path);
    if (failed)
      return failed;
  }
  context[WEIGHTS].value.address = program->mapped;
#elif WEIGHT_BYTES
  context[WEIGHTS].value.address = model_program_weights;
#endif
  (void)options;
#if THREADS > 1
  context[SEMAPHORES].value.address = program->semaphores;
  return start_workers(program, threads);
#else
  return MODEL_OK;
#endif
}

int model_init(model_program **result, const model_options *options)
{
  static const model_options defaults;
  model_program *program;
  void *memory;
  int32_t threads;
  int failed;
  if (result == NULL)
    return MODEL_ERROR_ARGUMENT;
  *result = NULL;
  if (options == NULL)
    options = &defaults;
  if (options->threads < 0 || options->threads > MODEL_MAX_THREADS)
    return MODEL_ERROR_THREADS;
  threads = options->threads ? options->threads : 1;
  memory = options->workspace;
  if (memory != NULL) {
    if ((uintptr_t)memory % MODEL_WORKSPACE_ALIGNMENT)
      return MODEL_ERROR_ALIGNMENT;
    if (options->workspace_bytes < MODEL_WORKSPACE_BYTES)
      return MODEL_ERROR_WORKSPACE;
  }
  if (!processor_fits())
    return MODEL_ERROR_PROCESSOR;
  if (memory == NULL && posix_memalign(&memory, MODEL_WORKSPACE_ALIGNMENT, MODEL_WORKSPACE_BYTES))
    return MODEL_ERROR_MEMORY;
  program = memory;
  memset(program, 0, sizeof *program);
  program->owned = options->workspace == NULL ? memory : NULL;
  failed = prepare(program, options, threads);
  if (failed)
    model_free(program);
  else
    *result = program;
  return failed;
}

void model_free(model_program *program)
{
  if (program == NULL)
    return;
#if THREADS > 1
  stop_workers(program);
#endif
#if WEIGHTS_IN_FILE
  if (program->mapped != NULL)
    munmap(program->mapped, WEIGHT_BYTES);
#endif
  free(program->owned);
}

static int overlap(const void *a, size_t a_size, const void *b, size_t b_size)
{
  uintptr_t first = (uintptr_t)a, second = (uintptr_t)b;
  return first < second + b_size && second < first + a_size;
}

static int aligned(const void *address)
{
  return (uintptr_t)address % 64 == 0;
}

/* Whether every tensor that is not empty has an address, and no two outputs share memory. */
static int check_addresses(const void *const *addresses)
{
  int32_t i, j;
  for (i = 0; i < TENSOR_COUNT; i++)
    if (addresses[i] == NULL && tensors[i].bytes)
      return MODEL_ERROR_ARGUMENT;
  for (i = MODEL_INPUTS; i < TENSOR_COUNT; i++)
    for (j = MODEL_INPUTS; j < i; j++)
      if (overlap(addresses[i], tensors[i].bytes, addresses[j], tensors[j].bytes))
        return MODEL_ERROR_OVERLAP;
  return MODEL_OK;
}

/* Kernels read aligned memory, and write outputs before they have read all inputs. */
static int needs_copy(const void *const *addresses, int32_t index)
{
  int32_t j;
  if (!aligned(addresses[index]))
    return 1;
  for (j = MODEL_INPUTS; index < MODEL_INPUTS && j < TENSOR_COUNT; j++)
    if (overlap(addresses[index], tensors[index].bytes, addresses[j], tensors[j].bytes))
      return 1;
  return 0;
}

int model_run(model_program *program, const model_inputs *inputs, const model_outputs *outputs)
{
  const void *addresses[TENSOR_COUNT];
  void *results[MODEL_OUTPUTS];
  slot *first;
  int32_t i;
  int failed;
  if (program == NULL || inputs == NULL || outputs == NULL)
    return MODEL_ERROR_ARGUMENT;
  memcpy(addresses, inputs, MODEL_INPUTS * sizeof *addresses);
  memcpy(results, outputs, sizeof results);
  memcpy(addresses + MODEL_INPUTS, results, sizeof results);
  failed = check_addresses(addresses);
  if (failed)
    return failed;
  if (__atomic_exchange_n(&program->busy, 1, __ATOMIC_ACQUIRE))
    return MODEL_ERROR_BUSY;
  first = program->context + FIRST_IO;
  for (i = 0; i < TENSOR_COUNT; i++) {
    first[i].value.address = addresses[i];
    if (needs_copy(addresses, i)) {
      unsigned char *copy = program->staging + staging_offsets[i];
      if (i < MODEL_INPUTS && tensors[i].bytes)
        memcpy(copy, addresses[i], tensors[i].bytes);
      first[i].value.address = copy;
    }
  }
  model_program_run(program->context);
  for (i = 0; i < MODEL_OUTPUTS; i++) {
    int32_t at = MODEL_INPUTS + i;
    if (first[at].value.address != addresses[at] && tensors[at].bytes)
      memcpy(results[i], first[at].value.address, tensors[at].bytes);
  }
  __atomic_store_n(&program->busy, 0, __ATOMIC_RELEASE);
  return MODEL_OK;
}
