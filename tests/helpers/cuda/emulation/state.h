// What the emulated CUDA knows: memory, streams, events, graphs, and what was called.
//
// Everything that is launched or copied runs at once, in the order of the calls, unless its stream
// is being captured: then it goes into the graph. Only what is copied to pinned memory comes there
// when an event that was recorded later is found done, or is waited for. Device memory is the host's.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace emulation {

using Work = std::function<void()>;

struct Stream {
    bool blocking = true;  // ordered with the legacy stream
    int device = 0;
    int mode = 0;  // of the capture
    bool capturing = false;
    bool spoilt = false;  // something was called that a capture does not allow
    std::vector<Work> captured;
};

struct Event {
    int queries_until_done = 0;
    double recorded_at = 0;
    Stream *stream = nullptr, *capturing = nullptr;
    long transfers = 0;  // that were under way, or done, when it was recorded
};

struct Transfer {
    void *target;
    std::vector<char> bytes;
    Stream *stream;
    long number;
};

struct Graph {
    std::vector<Work> nodes;
};

struct Allocation {
    size_t size;
    int device;
    bool on_host;
};

struct Launch {
    std::string name;
    unsigned grid, block;
    int device;
    bool captured;
};

struct Everything {
    std::recursive_mutex lock;
    int devices = 2;
    int late = 0;  // how many queries of an event find it not done
    int refuse_waits = 0;  // what makes the host wait is an error while this is not 0
    bool idle = false;  // launches do nothing
    long fail_allocations = 0;  // so many of the coming ones
    std::vector<Stream *> streams;
    std::map<uintptr_t, Allocation> memory;
    std::map<uintptr_t, Allocation> freed;  // filled with 0xff, and kept
    std::vector<uintptr_t> freed_in_order;
    size_t freed_bytes = 0;
    long written_after_free = 0;
    std::vector<Transfer> under_way;  // to pinned memory
    long transfers = 0;
    std::map<std::string, long> calls;
    std::vector<std::string> waits;
    std::vector<Launch> launches;
    std::string stuck;  // the kernel that did not come to an end, and why
};

Everything &all();
Stream *stream_of(const void *handle);  // null for the legacy stream and the per-thread one
int current_device();

// Runs work now, or puts it into the graph of a stream that is captured.
void submit(Stream *stream, Work work);

}  // namespace emulation
