//! Multiplication in GF(2^128) with ordinary integers, for processors without an instruction for it.
//!
//! Its time depends on no operand, so that it tells nobody about the key. The field is that of AES-GCM, with bit
//! `i` of a number as the factor of x^i.

/// x^128 = x^7 + x^2 + x + 1.
const FOLD: u64 = 0x87;

const fn classes() -> [u128; 5] {
    let mut out = [0; 5];
    let mut class = 0;
    while class < 5 {
        let mut bit = class;
        while bit < 128 {
            out[class] |= 1 << bit;
            bit += 5;
        }
        class += 1;
    }
    out
}

/// The bits whose place has the same remainder by five. In the integer product of two numbers of one class each,
/// at most 13 ones meet in a place, so their carries stay within the four places that belong to other classes, and
/// the bit of its own class is the sum without carry.
const CLASSES: [u128; 5] = classes();

/// The product of two polynomials of 64 bits.
fn multiply_64(a: u64, b: u64) -> u128 {
    let mut product = 0;
    for (class, mask) in CLASSES.iter().enumerate() {
        let mut sum = 0;
        for (of_a, mask_a) in CLASSES.iter().enumerate() {
            let mask_b = CLASSES[(class + 5 - of_a) % 5];
            let (a, b) = (u128::from(a) & mask_a, u128::from(b) & mask_b);
            // Both have 64 bits: the product has 128 and nothing is lost.
            sum ^= a.wrapping_mul(b);
        }
        product |= sum & mask;
    }
    product
}

/// The product of two elements of the field.
pub(super) fn multiply(a: u128, b: u128) -> u128 {
    let (a_low, a_high) = (a as u64, (a >> 64) as u64);
    let (b_low, b_high) = (b as u64, (b >> 64) as u64);
    let low = multiply_64(a_low, b_low);
    let high = multiply_64(a_high, b_high);
    let middle = multiply_64(a_low ^ a_high, b_low ^ b_high) ^ low ^ high;
    let (low, high) = (low ^ middle << 64, high ^ middle >> 64);
    let fold = multiply_64((high >> 64) as u64, FOLD);
    let (low, high) = (low ^ fold << 64, high ^ fold >> 64);
    low ^ multiply_64(high as u64, FOLD)
}
