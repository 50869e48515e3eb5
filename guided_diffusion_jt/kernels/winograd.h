// 3x3 convolutions of stride one and their gradients by Winograd's algorithm F(4x4, 3x3), in float32.
//
// `winograd.py` puts the matrices before this text: INPUTS (6, 6), KERNELS (6, 3) and OUTPUTS (4, 6). A tile of the
// input has 6x6 values, one of the output 4x4. Shapes are those of arrays in C order.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>
#include <omp.h>

// Eight floats that one instruction computes; they may begin at any float.
typedef float Lanes __attribute__((vector_size(32), aligned(4)));

// Multiply two blocks: m = u^T v, or m += u^T v with `add`. The sums of the 6x16 block stay in registers.
//
// u: (count, 6). v: (count, 16). m: 6 rows of 16, which begin `stride` floats apart.
template <bool add>
static inline void multiply(const float* u, const float* v, int64_t count, float* m, int64_t stride) {
    Lanes left[6] = {}, right[6] = {};
    for (int64_t i = 0; i < count; i++, u += 6, v += 16) {
        const Lanes a = *(const Lanes*)v, b = *(const Lanes*)(v + 8);
        #pragma GCC unroll 6
        for (int j = 0; j < 6; j++) {
            left[j] += u[j] * a;
            right[j] += u[j] * b;
        }
    }
    #pragma GCC unroll 6
    for (int i = 0; i < 6; i++) {
        Lanes *first = (Lanes*)(m + i * stride), *second = (Lanes*)(m + i * stride + 8);
        *first = add ? *first + left[i] : left[i];
        *second = add ? *second + right[i] : right[i];
    }
}

// Transform the input of one row of tiles of one channel: B^T d B for each 6x6 tile d.
//
// image:  (height, width), one channel. The tiles take lines top - 1 to top + 4; lines outside the image are zeros.
// zeros:  width zeros.
// line:   memory for 4 (width / 4 + 1) floats.
// values: 36 rows of width / 4, one column per tile, which begin `stride` floats apart.
static inline void transform_input(const float* image, int64_t top, int64_t height, int64_t width,
                                   const float* zeros, float* line, float* values, int64_t stride) {
    const int64_t tiles = width / 4, columns = tiles + 1;
    const float* rows[6];
    for (int j = 0; j < 6; j++) {
        const int64_t y = top - 1 + j;
        rows[j] = y < 0 || y >= height ? zeros : image + y * width;
    }
    // First B^T d, a sum of six lines. Column x of the image goes to row (x + 1) % 4, column (x + 1) / 4 of `line`, so
    // that the same column of all tiles lies in one row.
    float *first = line, *second = first + columns, *third = second + columns, *fourth = third + columns;
    #pragma GCC unroll 6
    for (int i = 0; i < 6; i++) {
        first[0] = second[tiles] = 0;
        for (int64_t x = 0; x < tiles; x++) {
            float sums[4] = {};
            #pragma GCC unroll 6
            for (int j = 0; j < 6; j++)
                for (int k = 0; k < 4; k++) sums[k] += INPUTS[i][j] * rows[j][4 * x + k];
            second[x] = sums[0];
            third[x] = sums[1];
            fourth[x] = sums[2];
            first[x + 1] = sums[3];
        }
        // Then the product with B: columns 4 and 5 of a tile are columns 0 and 1 of the next one.
        #pragma GCC unroll 6
        for (int k = 0; k < 6; k++)
            for (int64_t x = 0; x < tiles; x++)
                values[(6 * i + k) * stride + x] =
                    INPUTS[k][0] * first[x] + INPUTS[k][1] * second[x] + INPUTS[k][2] * third[x]
                    + INPUTS[k][3] * fourth[x] + INPUTS[k][4] * first[x + 1] + INPUTS[k][5] * second[x + 1];
    }
}

// Transform the products of one row of tiles to the output: A^T m A for each 6x6 tile m, plus the bias.
//
// values: 36 rows of width / 4, one column per tile, which begin `stride` floats apart.
// out:    (4, width).
static inline void transform_output(const float* values, int64_t stride, float bias, int64_t width, float* out) {
    for (int64_t x = 0; x < width / 4; x++) {
        float columns[4][6];
        #pragma GCC unroll 6
        for (int k = 0; k < 6; k++)
            #pragma GCC unroll 4
            for (int r = 0; r < 4; r++) {
                float sum = 0;
                #pragma GCC unroll 6
                for (int i = 0; i < 6; i++) sum += OUTPUTS[r][i] * values[(6 * i + k) * stride + x];
                columns[r][k] = sum;
            }
        #pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
            #pragma GCC unroll 4
            for (int q = 0; q < 4; q++) {
                float sum = bias;
                #pragma GCC unroll 6
                for (int k = 0; k < 6; k++) sum += OUTPUTS[q][k] * columns[r][k];
                out[r * width + 4 * x + q] = sum;
            }
    }
}

// Transform the gradient of the output, the transpose of `transform_output`: A g A^T for each 4x4 tile g.
//
// gradient: (4, width).
// values:   36 rows of width / 4, one column per tile, which begin `stride` floats apart.
static inline void transform_gradient(const float* gradient, int64_t width, float* values, int64_t stride) {
    for (int64_t x = 0; x < width / 4; x++) {
        float columns[6][4];
        #pragma GCC unroll 6
        for (int i = 0; i < 6; i++)
            #pragma GCC unroll 4
            for (int q = 0; q < 4; q++) {
                float sum = 0;
                #pragma GCC unroll 4
                for (int r = 0; r < 4; r++) sum += OUTPUTS[r][i] * gradient[r * width + 4 * x + q];
                columns[i][q] = sum;
            }
        #pragma GCC unroll 6
        for (int i = 0; i < 6; i++)
            #pragma GCC unroll 6
            for (int k = 0; k < 6; k++) {
                float sum = 0;
                #pragma GCC unroll 4
                for (int q = 0; q < 4; q++) sum += OUTPUTS[q][k] * columns[i][q];
                values[(6 * i + k) * stride + x] = sum;
            }
    }
}

// Copy the values (36, count) of a channel to its lane of an array (36, blocks, count, lanes).
//
// packed: the place of the channel's block and lane in that array.
static inline void pack(const float* values, int64_t count, int64_t blocks, int64_t lanes, float* packed) {
    for (int64_t k = 0; k < 36; k++)
        for (int64_t t = 0; t < count; t++) packed[(k * blocks * count + t) * lanes] = values[k * count + t];
}

// Transform the kernels: G g G^T for each 3x3 kernel g.
//
// weight: (outputs, channels, 3, 3).
// turned: take the kernels of the input's gradient instead: weight is (channels, outputs, 3, 3), and each kernel is
//         turned by half a circle.
// out:    (36, outputs / 6 rounded up, channels, 6), with zeros in place of missing output channels.
static inline void transform_kernels(const float* __restrict__ weight, int64_t outputs, int64_t channels, bool turned,
                                     float* __restrict__ out) {
    const int64_t blocks = (outputs + 5) / 6;
    constexpr int64_t piece = 32;
    #pragma omp parallel for
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t start = 0; start < channels; start += piece) {  // so that whole pages are written in turn
            const int64_t count = std::min(piece, channels - start), size = 6 * count;
            float kernels[9][6 * piece] = {}, values[36][6 * piece];
            for (int64_t lane = 0; lane < std::min<int64_t>(6, outputs - 6 * block); lane++)
                for (int64_t c = 0; c < count; c++)
                    for (int i = 0; i < 9; i++) {
                        const int64_t o = 6 * block + lane, channel = start + c;
                        kernels[i][6 * c + lane] = turned ? weight[(channel * outputs + o) * 9 + 8 - i]
                            : weight[(o * channels + channel) * 9 + i];
                    }
            for (int64_t x = 0; x < size; x++) {
                float rows[6][3];
                #pragma GCC unroll 6
                for (int i = 0; i < 6; i++)
                    #pragma GCC unroll 3
                    for (int k = 0; k < 3; k++)
                        rows[i][k] = KERNELS[i][0] * kernels[k][x] + KERNELS[i][1] * kernels[3 + k][x]
                            + KERNELS[i][2] * kernels[6 + k][x];
                #pragma GCC unroll 6
                for (int i = 0; i < 6; i++)
                    #pragma GCC unroll 6
                    for (int k = 0; k < 6; k++)
                        values[6 * i + k][x] = KERNELS[k][0] * rows[i][0] + KERNELS[k][1] * rows[i][1]
                            + KERNELS[k][2] * rows[i][2];
            }
            for (int k = 0; k < 36; k++)
                std::memcpy(out + ((k * blocks + block) * channels + start) * 6, values[k], size * sizeof(float));
        }
}

// Convolve x with kernels and add the bias.
//
// x:       (images, channels, height, width).
// kernels: the result of `transform_kernels`.
// bias:    (outputs,).
// largest: number of tiles that a thread computes at a time, in whole rows of tiles.
// out:     (images, outputs, height, width).
static inline void convolve(const float* __restrict__ x, const float* __restrict__ kernels,
                            const float* __restrict__ bias, int64_t images, int64_t channels, int64_t outputs,
                            int64_t height, int64_t width, int64_t largest, float* __restrict__ out) {
    const int64_t blocks = (outputs + 5) / 6, columns = width / 4, lines = height / 4, rows = images * lines;
    const int64_t share = (rows + omp_get_max_threads() - 1) / omp_get_max_threads();
    const int64_t chunk = std::max<int64_t>(1, std::min<int64_t>(share, largest / columns));
    const int64_t tiles = (chunk * columns + 15) / 16 * 16;
    #pragma omp parallel
    {
        std::vector<float> zeros(width), line(width + 4), values(36 * tiles);
        std::vector<float> inputs(36 * channels * tiles), products(36 * 6 * blocks * tiles);
        #pragma omp for schedule(dynamic)
        for (int64_t start = 0; start < rows; start += chunk) {
            const int64_t stop = std::min(start + chunk, rows);
            // The transformed input goes to (36, tiles / 16, channels, 16), the order in which `multiply` reads it.
            for (int64_t c = 0; c < channels; c++) {
                for (int64_t row = start; row < stop; row++)
                    transform_input(x + (row / lines * channels + c) * height * width, row % lines * 4, height, width,
                                    zeros.data(), line.data(), values.data() + (row - start) * columns, tiles);
                for (int64_t k = 0; k < 36; k++)
                    for (int64_t t = 0; t < tiles; t += 16)
                        std::memcpy(inputs.data() + (k * tiles + t) * channels + c * 16, values.data() + k * tiles + t, 64);
            }
            // One matrix product for each of the 36 values: products is (36, 6 blocks, tiles).
            for (int64_t k = 0; k < 36; k++)
                for (int64_t t = 0; t < tiles; t += 16)
                    for (int64_t block = 0; block < blocks; block++)
                        multiply<false>(kernels + (k * blocks + block) * channels * 6, inputs.data() + (k * tiles + t) * channels,
                                 channels, products.data() + (k * blocks + block) * 6 * tiles + t, tiles);
            for (int64_t o = 0; o < outputs; o++)
                for (int64_t row = start; row < stop; row++)
                    transform_output(products.data() + o * tiles + (row - start) * columns, 6 * blocks * tiles, bias[o],
                                     width, out + ((row / lines * outputs + o) * height + row % lines * 4) * width);
        }
    }
}

// Compute the gradient of the weight.
//
// x:        (images, channels, height, width).
// gradient: (images, outputs, height, width), that of the output.
// largest:  number of tiles that are computed at a time, in whole rows of tiles.
// out:      (outputs, channels, 3, 3).
// room:     memory for the gradient of the transformed kernels, (36, outputs, channels), with outputs rounded up to
//           whole blocks of 6 and channels to whole blocks of 16.
static inline void weight_gradient(const float* __restrict__ x, const float* __restrict__ gradient, int64_t images,
                                   int64_t channels, int64_t outputs, int64_t height, int64_t width, int64_t largest,
                                   float* __restrict__ out, float* __restrict__ room) {
    const int64_t columns = width / 4, lines = height / 4, rows = images * lines;
    const int64_t chunk = std::max<int64_t>(1, std::min<int64_t>(rows, largest / columns));
    const int64_t tiles = chunk * columns, left = (outputs + 5) / 6, right = (channels + 15) / 16;
    std::vector<float> zeros(width), gradients(36 * left * tiles * 6), inputs(36 * right * tiles * 16);
    #pragma omp parallel
    {
        std::vector<float> line(width + 4), values(36 * tiles);
        for (int64_t start = 0; start < rows; start += chunk) {
            const int64_t stop = std::min(start + chunk, rows);
            std::fill(values.begin(), values.end(), 0.f);  // the last chunk may be shorter
            #pragma omp for
            for (int64_t o = 0; o < outputs; o++) {
                for (int64_t row = start; row < stop; row++)
                    transform_gradient(gradient + ((row / lines * outputs + o) * height + row % lines * 4) * width, width,
                                       values.data() + (row - start) * columns, tiles);
                pack(values.data(), tiles, left, 6, gradients.data() + o / 6 * tiles * 6 + o % 6);
            }
            #pragma omp for
            for (int64_t c = 0; c < channels; c++) {
                for (int64_t row = start; row < stop; row++)
                    transform_input(x + (row / lines * channels + c) * height * width, row % lines * 4, height, width,
                                    zeros.data(), line.data(), values.data() + (row - start) * columns, tiles);
                pack(values.data(), tiles, right, 16, inputs.data() + c / 16 * tiles * 16 + c % 16);
            }
            // One matrix product over the tiles for each of the 36 values. The first chunk sets the sums.
            #pragma omp for
            for (int64_t k = 0; k < 36; k++)
                for (int64_t c = 0; c < right; c++)
                    for (int64_t o = 0; o < left; o++)
                        (start ? multiply<true> : multiply<false>)(
                            gradients.data() + (k * left + o) * tiles * 6, inputs.data() + (k * right + c) * tiles * 16,
                            tiles, room + ((k * left + o) * 6 * right + c) * 16, right * 16);
        }
        // Back to 3x3 kernels: G^T w G for each 6x6 gradient w, 16 channels at a time.
        #pragma omp for
        for (int64_t o = 0; o < outputs; o++)
            for (int64_t start = 0; start < channels; start += 16) {
                float sums[3][6][16], found[9][16];
                #pragma GCC unroll 6
                for (int k = 0; k < 6; k++)
                    #pragma GCC unroll 3
                    for (int j = 0; j < 3; j++)
                        for (int c = 0; c < 16; c++) {
                            float sum = 0;
                            #pragma GCC unroll 6
                            for (int i = 0; i < 6; i++)
                                sum += KERNELS[i][j] * room[((6 * i + k) * left * 6 + o) * right * 16 + start + c];
                            sums[j][k][c] = sum;
                        }
                #pragma GCC unroll 3
                for (int j = 0; j < 3; j++)
                    #pragma GCC unroll 3
                    for (int l = 0; l < 3; l++)
                        for (int c = 0; c < 16; c++) {
                            float sum = 0;
                            #pragma GCC unroll 6
                            for (int k = 0; k < 6; k++) sum += KERNELS[k][l] * sums[j][k][c];
                            found[3 * j + l][c] = sum;
                        }
                for (int64_t c = 0; c < std::min<int64_t>(16, channels - start); c++)
                    for (int i = 0; i < 9; i++) out[(o * channels + start + c) * 9 + i] = found[i][c];
            }
    }
}
