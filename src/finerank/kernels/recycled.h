// Memory for columns that come and go by the block. What was let go of is used again: to be given new pages by the system takes
// as long as to fill them.

#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace recycled {

class Store {
  public:
    void* take(int size) {  // of 2^size bytes
        {
            const std::lock_guard<std::mutex> lock(mutex);
            if (!spare[size].empty()) {
                void* found = spare[size].back();
                spare[size].pop_back();
                kept -= std::size_t{1} << size;
                return found;
            }
        }
        return ::operator new(std::size_t{1} << size);
    }

    void give(void* memory, int size) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (kept + (std::size_t{1} << size) > MOST) return ::operator delete(memory);
        spare[size].push_back(memory);
        kept += std::size_t{1} << size;
    }

    void clear() {  // what is in use is kept again when it comes back
        const std::lock_guard<std::mutex> lock(mutex);
        for (auto& all : spare) {
            for (void* memory : all) ::operator delete(memory);
            all.clear();
        }
        kept = 0;
    }

  private:
    static constexpr std::size_t MOST = std::size_t{1} << 26;
    std::mutex mutex;
    std::vector<void*> spare[64];
    std::size_t kept = 0;
};

inline Store store;

struct Give {
    int size;
    void operator()(void* memory) const { store.give(memory, size); }
};

template <class T>
using Values = std::unique_ptr<T[], Give>;

// n values, not set; T: of plain numbers.
template <class T>
Values<T> values(std::size_t n) {
    int size = 12;
    while (std::size_t{1} << size < n * sizeof(T)) size++;
    return Values<T>(static_cast<T*>(store.take(size)), Give{size});
}

}  // namespace recycled
