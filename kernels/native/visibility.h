// What a library shows to others: everything else is compiled with -fvisibility=hidden, so that
// several of them in one process (of Python, of packaged models) do not share functions.
#pragma once

#define PADST_EXPORT __attribute__((visibility("default")))
