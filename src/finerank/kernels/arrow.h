// Arrow's C data interface, the form in which columns pass between Polars and the loops without being copied.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace arrow {

using i64 = std::int64_t;
using u32 = std::uint32_t;

struct Schema {
    const char *format, *name, *metadata;
    i64 flags, n_children;
    Schema **children, *dictionary;
    void (*release)(Schema*);
    void* own;
};

struct Array {
    i64 length, null_count, offset, n_buffers, n_children;
    const void** buffers;
    Array **children, *dictionary;
    void (*release)(Array*);
    void* own;
};

struct Stream {
    int (*get_schema)(Stream*, Schema*);
    int (*get_next)(Stream*, Array*);
    const char* (*get_last_error)(Stream*);
    void (*release)(Stream*);
    void* own;
};

struct View {  // 16 bytes: up to 12 bytes of text within it, zeros behind, or where to find it
    static constexpr u32 inside = 12;
    u32 size;
    char start[4];
    std::int32_t buffer, offset;
};

constexpr i64 WINDOW = i64{1} << 30;  // offsets have 32 bits: a buffer begins at every multiple of it, and reaches over the next

// A text that lies at `at` of the texts of its column, once they are all there; p: where it is now.
inline View view_of(const char* p, u32 size, i64 at, i64 window = WINDOW) {
    View view{size, {}, 0, 0};
    if (size <= View::inside) {
        std::memcpy(view.start, p, size);
    } else {
        std::memcpy(view.start, p, sizeof view.start);
        view.buffer = static_cast<std::int32_t>(at / window);
        view.offset = static_cast<std::int32_t>(at % window);
    }
    return view;
}

// Rows [n] of one column, to be handed over. known: a bit a row, the lowest first; empty: no row is null.
template <class T>
struct Rows {
    std::vector<T> values;
    std::string texts;  // of views: those that do not fit inside
    std::vector<std::uint8_t> known;
    i64 nulls = 0;

    std::vector<const void*> buffers;
    std::vector<i64> sizes;
};

// Hands rows over: `array` and `schema` own them from then on. format: "l" int64, "g" float64, "vu" text.
template <class T>
void hand_over(Rows<T> rows, const char* format, Schema* schema, Array* array, i64 window = WINDOW) {
    auto* own = new Rows<T>(std::move(rows));
    own->buffers = {own->nulls ? own->known.data() : nullptr, own->values.data()};
    if (!std::strcmp(format, "vu")) {
        const i64 size = static_cast<i64>(own->texts.size());
        for (i64 at = 0; at < size; at += window) {
            own->buffers.push_back(own->texts.data() + at);
            own->sizes.push_back(std::min(size - at, 2 * window - 1));
        }
        own->buffers.push_back(own->sizes.data());
    }
    *array = {static_cast<i64>(own->values.size()), own->nulls, 0, static_cast<i64>(own->buffers.size()), 0, own->buffers.data(), nullptr, nullptr,
              [](Array* done) {
                  delete static_cast<Rows<T>*>(done->own);
                  done->release = nullptr;
              },
              own};
    *schema = {format, "", nullptr, 2, 0, nullptr, nullptr, [](Schema* done) { done->release = nullptr; }, nullptr};  // 2: may be null
}

}  // namespace arrow
