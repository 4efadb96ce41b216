// Columns of text, read where Polars keeps them (Arrow's C stream of string views): split at a separator, as integers, or as
// codes of a dictionary that grows. Null and empty text are one: a value that is missing.
//
// n rows · m entries: those of all rows one after the other, or the rows themselves where nothing is split

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "arrow.h"
#include "words.h"

using i64 = std::int64_t;
using u64 = std::uint64_t;
using u32 = std::uint32_t;

using arrow::Array, arrow::Schema, arrow::Stream, arrow::View;
using words::load, words::read_digits;

namespace {

// ---------------------------------------------------------------------------------------------- columns of Polars

struct Column {
    std::vector<Array> chunks;
    ~Column() {
        for (Array& chunk : chunks) chunk.release(&chunk);
    }
};

// f(text, size) for each row.
template <class F>
bool each_row(const Column& column, F f) {
    for (const Array& chunk : column.chunks) {
        const auto* known = static_cast<const std::uint8_t*>(chunk.buffers[0]);
        const auto* views = static_cast<const View*>(chunk.buffers[1]);
        for (i64 i = chunk.offset; i < chunk.offset + chunk.length; i++) {
            const View& view = views[i];
            const char* text = view.text();
            u32 size = view.size;
            if (known != nullptr && !(known[i >> 3] >> (i & 7) & 1)) {
                size = 0;
            } else if (size > View::inside) {
                text = static_cast<const char*>(chunk.buffers[2 + view.buffer]) + view.offset;
            }
            if (!f(text, size)) return false;
        }
    }
    return true;
}

// ---------------------------------------------------------------------------------------------- a dictionary

u64 mixed(u64 a, u64 b) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    return static_cast<u64>(product) ^ static_cast<u64>(product >> 64);
}

// Texts of at most 8 bytes as a number that tells those of one size apart; a hash of longer ones.
u64 key_of(const char* p, u64 n) {
    if (n >= 8) {
        u64 key = load(p + n - 8, 8);
        if (n == 8) return key;
        for (u64 i = 0; i + 8 < n; i += 8) key = mixed(key ^ load(p + i, 8), 0x9e3779b97f4a7c15);
        return key;
    }
    if (n >= 4) return load(p, 4) | load(p + n - 4, 4) << 32;
    const auto at = [p](u64 i) { return static_cast<u64>(static_cast<unsigned char>(p[i])); };
    return at(0) | at(n / 2) << 8 | at(n - 1) << 16;
}

u64 hash_of(u64 key, u64 n) { return mixed(key ^ 0x2545f4914f6cdd1d, 0x9e3779b97f4a7c15 + n); }

struct Sought {
    const char* p;
    u32 n;
    u64 key, hash;
};

struct Slot {
    u64 key;
    u32 size, code;  // code 0: free
};

struct Dictionary {
    std::vector<Slot> slots = std::vector<Slot>(1024);
    std::vector<i64> ends{0};  // of each code's text; of code 0, which is no text, 0
    std::string texts;

    u32 code(const Sought& text) {
        for (u64 at = text.hash & (slots.size() - 1);; at = (at + 1) & (slots.size() - 1)) {
            const Slot& slot = slots[at];
            if (slot.code == 0) return added(text, at);
            if (slot.key != text.key || slot.size != text.n) continue;
            if (text.n <= 8 || !std::memcmp(&texts[ends[slot.code - 1]], text.p, text.n)) return slot.code;
        }
    }

    void fetch(const Sought& text) const { __builtin_prefetch(&slots[text.hash & (slots.size() - 1)]); }

  private:
    u32 added(const Sought& text, u64 at) {
        const u32 code = static_cast<u32>(ends.size());
        texts.append(text.p, text.n);
        ends.push_back(static_cast<i64>(texts.size()));
        slots[at] = {text.key, text.n, code};
        if (2 * ends.size() > slots.size()) {
            std::vector<Slot> before(2 * slots.size());
            before.swap(slots);
            for (const Slot& slot : before) {
                if (slot.code == 0) continue;
                u64 to = hash_of(slot.key, slot.size) & (slots.size() - 1);
                while (slots[to].code != 0) to = (to + 1) & (slots.size() - 1);
                slots[to] = slot;
            }
        }
        return code;
    }
};

// Codes of texts, one after the other; 0 for empty ones. Where a text may be is fetched from memory while others are looked up.
class Codes {
  public:
    Codes(Dictionary& dictionary, u32* out) : dictionary(dictionary), out(out) {}
    ~Codes() { look_up(); }

    void add(const char* p, u32 n) {
        const u64 key = n ? key_of(p, n) : 0;
        few[waiting] = {p, n, key, hash_of(key, n)};
        dictionary.fetch(few[waiting++]);
        if (waiting == FEW) look_up();
    }

  private:
    static constexpr int FEW = 32;
    Dictionary& dictionary;
    u32* out;
    Sought few[FEW];
    int waiting = 0;

    void look_up() {
        for (int i = 0; i < waiting; i++) *out++ = few[i].n ? dictionary.code(few[i]) : 0;
        waiting = 0;
    }
};

}  // namespace

// ---------------------------------------------------------------------------------------------- columns

// Takes a stream over; null if it holds anything but string views.
extern "C" Column* texts_open(Stream* stream) {
    Schema schema{};
    bool fits = stream->get_schema(stream, &schema) == 0;
    if (fits) {
        fits = !std::strcmp(schema.format, "vu");
        schema.release(&schema);
    }
    auto* column = new Column;
    while (fits) {
        Array chunk{};
        fits = stream->get_next(stream, &chunk) == 0;
        if (!fits || chunk.release == nullptr) break;
        column->chunks.push_back(chunk);
    }
    stream->release(stream);
    if (fits) return column;
    delete column;
    return nullptr;
}

extern "C" void texts_close(Column* column) { delete column; }

// lengths [n]: how many entries each row has, none if it is missing. Returns how many of all entries are missing.
extern "C" i64 texts_lengths(const Column* column, int separator, i64* lengths) {
    const char mark = static_cast<char>(separator);
    i64 missing = 0;
    each_row(*column, [&](const char* p, u32 n) {
        u32 count = n > 0, empty = 0;
        for (u32 i = 0; i < n; i++) count += p[i] == mark;
        for (u32 i = 1; i < n; i++) empty += (p[i] == mark) & (p[i - 1] == mark);
        if (n > 0) empty += (p[0] == mark) + (p[n - 1] == mark);
        *lengths++ = count;
        missing += empty;
        return true;
    });
    return missing;
}

// out [m]: the entries as integers, each as its distance from a base, the least int32 for what is missing. facts: base (the
// first integer, unless `based` says that it is given), least and greatest; least > greatest: all are missing. Returns 0 as soon
// as a distance is too long, or an entry is neither missing nor written as an integer is written: "07", "+7" and "-0" are not.
extern "C" int texts_integers(const Column* column, int separator, int based, std::int32_t* out, i64* facts) {
    using Distance = std::numeric_limits<std::int32_t>;
    i64 base = facts[0], least = std::numeric_limits<i64>::max(), greatest = std::numeric_limits<i64>::min();
    const auto emit = [&](i64 value) {
        if (!based) base = value, based = 1;
        i64 distance;
        if (__builtin_sub_overflow(value, base, &distance) || distance <= Distance::min() || distance > Distance::max()) return false;
        *out++ = static_cast<std::int32_t>(distance);
        least = value < least ? value : least;
        greatest = value > greatest ? value : greatest;
        return true;
    };
    const bool all = each_row(*column, [&](const char* p, u32 n) {
        if (n == 0 && separator >= 0) return true;
        for (const char* end = p + n;; p++) {
            i64 quick;
            const int length = end - p > 8 ? read_digits(p, &quick) : 0;
            if (length > 0 && static_cast<unsigned char>(p[length]) == separator && (*p != '0' || length == 1)) {
                if (!emit(quick)) return false;
                p += length;
                continue;
            }
            const bool negative = p < end && *p == '-';
            p += negative;
            const char* digits = p;
            u64 value = 0;
            for (u32 digit; p < end && (digit = static_cast<unsigned char>(*p) - u32{'0'}) <= 9; p++) value = value * 10 + digit;
            const i64 size = p - digits;
            if (p < end && static_cast<unsigned char>(*p) != separator) return false;
            if (size == 0) {
                if (negative) return false;
                *out++ = Distance::min();
            } else {
                if (*digits == '0' && (size > 1 || negative)) return false;
                if (size > 19 || value > static_cast<u64>(std::numeric_limits<i64>::max())) return false;
                if (!emit(negative ? -static_cast<i64>(value) : static_cast<i64>(value))) return false;
            }
            if (p == end) return true;
        }
    });
    facts[0] = base, facts[1] = least, facts[2] = greatest;
    return all;
}

// out [m]: the codes of the entries, from 1 on in the order of first occurrence; 0 for what is missing.
extern "C" void texts_codes(const Column* column, int separator, Dictionary* dictionary, u32* out) {
    Codes codes(*dictionary, out);
    each_row(*column, [&](const char* p, u32 n) {
        if (separator < 0) {
            codes.add(p, n);
            return true;
        }
        if (n == 0) return true;
        for (const char* end = p + n;; p++) {
            const char* start = p;
            while (p < end && static_cast<unsigned char>(*p) != separator) p++;
            codes.add(start, static_cast<u32>(p - start));
            if (p == end) return true;
        }
    });
}

// ends [n + 1]: where each row begins and ends, were they one after the other; then their bytes, if there is room for them.
extern "C" void texts_packed(const Column* column, i64* ends, char* bytes) {
    i64 end = *ends = 0;
    each_row(*column, [&](const char* p, u32 n) {
        if (bytes != nullptr) std::memcpy(bytes + end, p, n);
        *++ends = end += n;
        return true;
    });
}

// out [n]: the rows by falling counts [n] (null: all alike), then by their bytes.
extern "C" void texts_order(const Column* column, i64 n, const i64* counts, i64* out) {
    struct Row {
        i64 count;
        u64 start;  // the first 8 bytes, the first one highest; zeros behind
        const char* p;
        u32 size, number;
    };
    std::vector<Row> rows;
    rows.reserve(n);
    each_row(*column, [&](const char* p, u32 size) {
        u64 start = 0;
        std::memcpy(&start, p, std::min(size, 8u));
        const i64 row = static_cast<i64>(rows.size());
        rows.push_back({counts != nullptr ? counts[row] : 0, __builtin_bswap64(start), p, size, static_cast<u32>(row)});
        return true;
    });
    std::sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) {
        if (a.count != b.count) return a.count > b.count;
        if (a.start != b.start) return a.start < b.start;
        const u32 both = std::min(a.size, b.size);
        const int found = both > 8 ? std::memcmp(a.p + 8, b.p + 8, both - 8) : 0;
        if (found != 0) return found < 0;
        return a.size != b.size ? a.size < b.size : a.number < b.number;
    });
    for (const Row& row : rows) *out++ = row.number;
}

extern "C" Dictionary* dictionary_new() { return new Dictionary; }
extern "C" void dictionary_free(Dictionary* dictionary) { delete dictionary; }
extern "C" i64 dictionary_size(const Dictionary* dictionary) { return static_cast<i64>(dictionary->ends.size()) - 1; }

// All texts, by code, as a column of text. window: see arrow.h; no text may be longer.
extern "C" void dictionary_all(const Dictionary* dictionary, i64 window, Schema* schema, Array* array) {
    const auto& ends = dictionary->ends;
    arrow::Rows<View> rows(static_cast<i64>(ends.size()) - 1);
    rows.size = static_cast<i64>(dictionary->texts.size());
    rows.texts = recycled::values<char>(dictionary->texts.size());
    std::memcpy(rows.texts.get(), dictionary->texts.data(), dictionary->texts.size());
    for (u64 i = 1; i < ends.size(); i++) {
        const i64 start = ends[i - 1];
        rows.values[i - 1] = arrow::view_of(rows.texts.get() + start, static_cast<u32>(ends[i] - start), start, window);
    }
    arrow::hand_over(std::move(rows), schema, array, window);
}
