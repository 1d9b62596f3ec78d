//! The regression of what all workers have in common, as sums that add up between routers.
//!
//! Sums that come from elsewhere are asked whether requests could have made them: those that are no squares could
//! have a solution that is no number.

use super::{KINDS, RESIDUAL_MAX};

/// Requests that the regression remembers.
const COMMON_WEIGHT_MAX: f64 = 1_000.0;
/// The belief before any request: as strong as so many that took what the formula said.
const COMMON_DOUBT: f64 = 10.0;

/// Sums of a linear regression.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Common {
    pub(super) weight: f64,
    pub(super) products: [[f64; KINDS]; KINDS],
    pub(super) targets: [f64; KINDS],
}

impl Common {
    fn scale(&mut self, factor: f64) {
        self.weight *= factor;
        self.products.iter_mut().flatten().for_each(|sum| *sum *= factor);
        self.targets.iter_mut().for_each(|sum| *sum *= factor);
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.weight += other.weight;
        let sums = self.products.iter_mut().flatten();
        sums.zip(other.products.iter().flatten()).for_each(|(sum, more)| *sum += more);
        self.targets.iter_mut().zip(other.targets).for_each(|(sum, more)| *sum += more);
        if self.weight > COMMON_WEIGHT_MAX {
            self.scale(COMMON_WEIGHT_MAX / self.weight);
        }
    }

    pub(super) fn of_one(kinds: [f64; KINDS], residual: f64) -> Self {
        let products = kinds.map(|a| kinds.map(|b| a * b));
        Self { weight: 1.0, products, targets: kinds.map(|kind| kind * residual) }
    }

    /// Whether these can be the sums of real requests: then no sum of such ones has a solution that is no number.
    pub(super) fn is_sane(&self) -> bool {
        let weight = self.weight;
        // Rounding is far below this, and the prior far above it.
        let slack = weight * 1e-9 + 1e-12;
        if !(weight >= 0.0 && weight <= COMMON_WEIGHT_MAX + slack) {
            return false;
        }
        // No kind is beyond 1, and the first is 1 for all. What is no number is within nothing.
        let within = |sum: f64, most: f64| sum.abs() <= most + slack;
        let small = self.products.iter().flatten().all(|sum| within(*sum, weight));
        let even = (0..KINDS)
            .all(|a| (0..a).all(|b| within(self.products[a][b] - self.products[b][a], 0.0)));
        let told = self.targets.iter().all(|sum| within(*sum, weight * RESIDUAL_MAX));
        let counted = within(self.products[0][0] - weight, 0.0);
        small && even && told && counted && self.is_positive(4.0 * slack)
    }

    /// Whether the products are those of a square, by elimination: no pivot may be negative.
    fn is_positive(&self, slack: f64) -> bool {
        let mut a = self.products;
        for (at, row) in a.iter_mut().enumerate() {
            row[at] += slack;
        }
        for pivot in 0..KINDS {
            let above = a[pivot];
            if above[pivot].is_nan() || above[pivot] <= 0.0 {
                return false;
            }
            for row in &mut a[pivot + 1..] {
                let factor = row[pivot] / above[pivot];
                row.iter_mut().zip(above).for_each(|(cell, other)| *cell -= factor * other);
            }
        }
        true
    }

    /// The means of the coefficients, by elimination: with the prior on its diagonal the matrix is positive, so no
    /// pivot is 0.
    pub(super) fn solve(&self) -> [f64; KINDS] {
        let (mut a, mut b) = (self.products, self.targets);
        for (at, row) in a.iter_mut().enumerate() {
            row[at] += COMMON_DOUBT;
        }
        for pivot in 0..KINDS {
            let (above, target) = (a[pivot], b[pivot]);
            for row in pivot + 1..KINDS {
                let factor = a[row][pivot] / above[pivot];
                a[row].iter_mut().zip(above).for_each(|(cell, other)| *cell -= factor * other);
                b[row] -= factor * target;
            }
        }
        for row in (0..KINDS).rev() {
            let known: f64 = (row + 1..KINDS).map(|column| a[row][column] * b[column]).sum();
            b[row] = (b[row] - known) / a[row][row];
        }
        b
    }
}
