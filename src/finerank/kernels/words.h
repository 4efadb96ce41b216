// Many bytes of text at a time: the lengths of ids and numbers are nothing that a processor could foresee.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace words {

using i64 = std::int64_t;
using u64 = std::uint64_t;

constexpr u64 EVERY = 0x0101010101010101;  // times a byte: that byte, eight times

inline u64 load(const char* p, int n) {  // n: 4 or 8
    u64 out = 0;
    std::memcpy(&out, p, n);
    return out;
}

// A bit for each of the 64 bytes at p, the first one lowest: whether it is a or b.
inline u64 either(const char* p, char a, char b) {
#if defined(__AVX512BW__)
    const __m512i bytes = _mm512_loadu_si512(p);
    return _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(a)) | _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(b));
#elif defined(__AVX2__)
    const auto half = [a, b](const char* p) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        const __m256i found = _mm256_or_si256(_mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(a)), _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(b)));
        return static_cast<u64>(static_cast<std::uint32_t>(_mm256_movemask_epi8(found)));
    };
    return half(p) | half(p + 32) << 32;
#else
    u64 out = 0;
    for (int i = 0; i < 64; i++) out |= static_cast<u64>(p[i] == a || p[i] == b) << i;
    return out;
#endif
}

// How many digits there are at p, of which 8 bytes may be read, and the number that they write; 0: none, or more than 7.
inline int read_digits(const char* p, i64* value) {
    u64 digits = load(p, 8) ^ '0' * EVERY;  // the first character is the lowest byte
    const u64 others = (digits | (digits + (0x80 - 10) * EVERY)) & 0x80 * EVERY;
    const int n = others ? __builtin_ctzll(others) / 8 : 0;
    if (n == 0) return 0;
    digits <<= 64 - 8 * n;                 // zeros in front
    digits = digits * 10 + (digits >> 8);  // in every other byte: a number of two digits
    const u64 low = (digits & 0xff000000ff) * (100 + (u64{1'000'000} << 32));
    const u64 high = (digits >> 16 & 0xff000000ff) * (1 + (u64{10'000} << 32));
    *value = static_cast<i64>((low + high) >> 32);
    return n;
}

}  // namespace words
