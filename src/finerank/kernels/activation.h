// Activations of layers, a vector at a time.

#pragma once

#include "matrix.h"

namespace {

using i64 = std::int64_t;

template <class T>
using V = typename Vector<T>::type;
template <class T>
constexpr i64 LENGTH = Vector<T>::length;

template <class T>
INLINE V<T> load(const T* at) {
    return *reinterpret_cast<const V<T>*>(at);
}

template <class T>
INLINE void store(T* at, V<T> value) {
    *reinterpret_cast<V<T>*>(at) = value;
}

// The activation max(z, 0) + slope * min(z, 0) of one vector of a layer, and the way back. bent: whether there is a slope.
template <class T, bool bent>
struct Activation {
    V<T> slope;

    INLINE V<T> operator()(V<T> z) const {
        if constexpr (bent)
            return z > 0 ? z : slope * z;
        else
            return z > 0 ? z : V<T>{};
    }
    // g: the gradient of the activation, becomes that of z; that of the slope is added to dslope
    INLINE void back(V<T> z, V<T>& g, V<T>& dslope) const {
        if constexpr (bent) {
            dslope += z > 0 ? V<T>{} : g * z;
            g = z > 0 ? g : g * slope;
        } else {
            g = z > 0 ? g : V<T>{};
        }
    }
};

}  // namespace
