//! A service's rows are made to add up to its exact figures.
//!
//! What was sampled is an estimate; what a service holds is known to the byte. The difference is spread over the
//! estimates in the proportion of their variances, as least squares have it: a large block, which is sampled for
//! certain, stays as it is, and what is of few samples gives or takes most. More than three standard errors are
//! not spread: there is no sample of it. What was allocated before sampling began has no call stack, and gets
//! a row of its own first: as much as is missing, but no more than can be from that time. Where nothing is
//! sampled any more, or much was dropped, the estimates are of a part only, and nothing is added to them.

use super::collect::{CollectedRow, ServiceTotal};
use super::row::{Estimate, Origin, ProfileRow};

/// Returns the rows of a service, whose objects and bytes add up to its exact ones. None is
/// negative, and none is zero.
pub(super) fn calibrate(
    total: &ServiceTotal,
    mut sampled: Vec<CollectedRow>,
    is_complete: bool,
) -> Vec<ProfileRow> {
    // Remainders are often equal: of what stands still, each profile rounds the same ones up.
    sampled.sort_unstable_by(|a, b| a.stack.cmp(&b.stack));
    let bytes = Spread::new(
        total.bytes,
        total.bytes_before,
        sampled.iter().map(|row| (row.bytes, row.bytes_variance)),
        is_complete,
    );
    let objects = Spread::new(
        total.blocks,
        total.blocks_before,
        sampled.iter().map(|row| (row.objects, row.objects_variance)),
        is_complete,
    );
    // No row can be wrong by more than all that there is.
    let at_most = |error: f64| error.min(bytes.exact as f64);

    let mut rows = Vec::with_capacity(sampled.len() + 2);
    let row = |origin, objects, bytes, standard_error, samples, estimate| ProfileRow {
        service: total.name.to_string(),
        handle: total.handle,
        origin,
        objects: signed(objects),
        bytes: signed(bytes),
        standard_error,
        samples,
        estimate,
    };
    let variance: f64 = sampled.iter().map(|row| known(row.bytes_variance)).sum();
    let none = Estimate::default();
    let error_before = at_most(variance.sqrt()).min(total.bytes_before as f64);
    rows.push(row(Origin::BeforeSampling, objects.before, bytes.before, error_before, 0, none));
    rows.push(row(Origin::NotSampled, objects.rest, bytes.rest, 0.0, 0, none));
    for (i, sampled) in sampled.into_iter().enumerate() {
        let error = match bytes.shares[i] {
            0 => 0.0,
            _ => at_most(known(sampled.bytes_variance).sqrt()),
        };
        let estimate = Estimate {
            objects: known(sampled.objects),
            bytes: known(sampled.bytes),
            objects_variance: known(sampled.objects_variance),
            bytes_variance: known(sampled.bytes_variance),
        };
        let stack = Origin::Stack(sampled.stack.to_vec());
        rows.push(row(stack, objects.shares[i], bytes.shares[i], error, sampled.samples, estimate));
    }
    rows.retain(|row| row.bytes != 0 || row.objects != 0);
    rows
}

/// An exact figure, spread over the estimates of it.
struct Spread {
    exact: u64,
    /// What was allocated before sampling began.
    before: u64,
    /// What there is no sample of.
    rest: u64,
    /// One for each estimate.
    shares: Vec<u64>,
}

impl Spread {
    /// Each estimate has a variance.
    fn new(
        exact: u64,
        before_at_most: u64,
        estimates: impl Iterator<Item = (f64, f64)>,
        is_complete: bool,
    ) -> Self {
        // What readers get is signed, since differences are.
        let exact = exact.min(i64::MAX as u64);
        let (mut estimates, variances): (Vec<f64>, Vec<f64>) =
            estimates.map(|(estimate, variance)| (known(estimate), known(variance))).unzip();
        let estimated = sum(&estimates);
        // The cast saturates.
        let before = exact.saturating_sub(estimated.round() as u64).min(before_at_most);
        let missing = (exact - before) as f64 - estimated;
        let plausible = DEVIATIONS * sum(&variances).sqrt();
        if missing < 0.0 {
            take_off(&mut estimates, &variances, -missing, plausible);
        } else if is_complete {
            add(&mut estimates, &variances, missing.min(plausible));
        }
        // The cast saturates here, too.
        let by_stack = (sum(&estimates).round() as u64).min(exact - before);
        let shares = apportion(by_stack, &estimates);
        let rest = exact - before - shares.iter().sum::<u64>();
        Self { exact, before, rest, shares }
    }
}

/// By so many standard errors a sum of estimates may be wrong.
const DEVIATIONS: f64 = 3.0;

/// Adds to estimates in the proportion of their variances.
fn add(estimates: &mut [f64], variances: &[f64], missing: f64) {
    let noise = sum(variances);
    if noise > 0.0 {
        estimates.iter_mut().zip(variances).for_each(|(it, variance)| *it += variance / noise * missing);
    }
}

/// Takes off estimates: what is plausible in the proportion of their variances, though none falls below 0, and
/// the rest in their own.
fn take_off(estimates: &mut [f64], variances: &[f64], mut excess: f64, plausible: f64) {
    let mut by_variance = excess.min(plausible);
    // Each round but the last takes one to 0.
    for _ in 0..estimates.len() {
        let is_left = |(estimate, variance): (&f64, &f64)| if *estimate > 0.0 { *variance } else { 0.0 };
        let left: Vec<f64> = estimates.iter().zip(variances).map(is_left).collect();
        let noise = sum(&left);
        if by_variance <= 0.0 || noise <= 0.0 {
            break;
        }
        let wanted = by_variance;
        for (estimate, variance) in estimates.iter_mut().zip(left) {
            let taken = (variance / noise * wanted).min(*estimate);
            *estimate -= taken;
            by_variance -= taken;
            excess -= taken;
        }
    }
    let left = sum(estimates);
    if excess > 0.0 && left > 0.0 {
        let part = (1.0 - excess / left).max(0.0);
        estimates.iter_mut().for_each(|estimate| *estimate *= part);
    }
}

/// A sum that is a number, however large its parts are.
fn sum(figures: &[f64]) -> f64 {
    figures.iter().sum::<f64>().min(f64::MAX)
}

/// Divides `total` in the proportion of the weights: whole numbers that add up to it, the largest
/// remainders rounded up. All are 0 if all weights are.
fn apportion(total: u64, weights: &[f64]) -> Vec<u64> {
    let largest = weights.iter().copied().fold(0.0, f64::max);
    if largest <= 0.0 {
        return vec![0; weights.len()];
    }
    // Whole numbers of 62 bits, so that a product with a total has 126.
    let weights: Vec<u128> =
        weights.iter().map(|weight| (weight / largest * (1_u64 << 62) as f64) as u128).collect();
    let sum: u128 = weights.iter().sum();
    let mut shares: Vec<u64> = Vec::with_capacity(weights.len());
    let mut remainders: Vec<(u128, usize)> = Vec::with_capacity(weights.len());
    for (i, weight) in weights.into_iter().enumerate() {
        let product = u128::from(total) * weight;
        shares.push((product / sum) as u64);
        remainders.push((product % sum, i));
    }
    let missing = total - shares.iter().sum::<u64>();
    remainders.sort_by(|(a, i), (b, j)| b.cmp(a).then(i.cmp(j)));
    for (_, i) in remainders.into_iter().take(missing as usize) {
        shares[i] += 1;
    }
    shares
}

/// An estimate that is a number and not negative.
fn known(estimate: f64) -> f64 {
    if estimate.is_finite() { estimate.max(0.0) } else { 0.0 }
}

fn signed(figure: u64) -> i64 {
    i64::try_from(figure).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn largest_remainders_are_rounded_up() {
        assert_eq!(apportion(10, &[1.0, 1.0, 1.0]), [4, 3, 3]);
        assert_eq!(apportion(7, &[0.5, 0.0, 1.5]), [2, 0, 5]);
        assert_eq!(apportion(u64::MAX, &[1e-300, 1e300]), [0, u64::MAX]);
        assert_eq!(apportion(5, &[0.0, 0.0]), [0, 0]);
        assert_eq!(apportion(5, &[]), [0; 0]);
    }

    #[test]
    fn the_order_of_rows_makes_no_difference() {
        let service = ServiceTotal {
            name: "service".into(),
            handle: 1,
            bytes: 10,
            blocks: 10,
            bytes_before: 0,
            blocks_before: 0,
        };
        let row = |address: usize| CollectedRow {
            service: 0,
            stack: [address].into(),
            samples: 1,
            objects: 3.0,
            bytes: 3.0,
            objects_variance: 1.0,
            bytes_variance: 1.0,
        };
        let calibrated = calibrate(&service, [1, 2, 3].map(row).into(), true);
        // Of a part of what there is, the rest is not sampled.
        let part = calibrate(&service, [1, 2].map(row).into(), false);
        assert_eq!(part.iter().map(|row| (&row.origin, row.bytes)).next(), Some((&Origin::NotSampled, 4)));
        assert_eq!(part[1..].iter().map(|row| row.bytes).collect::<Vec<_>>(), [3, 3]);
        assert_eq!(calibrate(&service, [3, 1, 2].map(row).into(), true), calibrated);
        assert_eq!(calibrated.iter().map(|row| row.bytes).collect::<Vec<_>>(), [4, 3, 3]);
    }

    #[test]
    fn what_was_allocated_before_sampling_is_what_is_missing() {
        let spread = |exact, before| {
            let spread = Spread::new(exact, before, [(300.0, 300.0 * 300.0), (100.0, 1e4)].into_iter(), true);
            assert_eq!(spread.rest, 0);
            (spread.before, spread.shares)
        };
        // As much as is missing,
        assert_eq!(spread(1000, 900), (600, vec![300, 100]));
        // not more than there was, so that the estimates are too small,
        assert_eq!(spread(1000, 200), (200, vec![660, 140]));
        // and nothing where they are too large already.
        assert_eq!(spread(200, 200), (0, vec![120, 80]));
        // Without samples the rest is not known.
        let spread = Spread::new(1000, 200, [].into_iter(), true);
        assert_eq!((spread.before, spread.rest, spread.shares.len()), (200, 800, 0));
    }

    #[test]
    fn what_is_certain_stays_as_it_is() {
        let spread = |exact, estimates: &[(f64, f64)]| {
            let spread = Spread::new(exact, 0, estimates.iter().copied(), true);
            (spread.rest, spread.shares)
        };
        let block = (5_000_000.0, 0.0);
        assert_eq!(spread(5_000_090, &[block, (100.0, 1e4)]), (0, vec![5_000_000, 90]));
        assert_eq!(spread(5_000_120, &[block, (100.0, 1e4)]), (0, vec![5_000_000, 120]));
        // No noise of samples is so large.
        assert_eq!(spread(5_001_000, &[block, (100.0, 1e4)]), (600, vec![5_000_000, 400]));
        assert_eq!(spread(5_001_000, &[block]), (1000, vec![5_000_000]));
        // What is less than what is certain has changed meanwhile.
        assert_eq!(spread(2_500_000, &[block, (100.0, 1e4)]).1[1], 0);
    }

    fn estimate() -> impl Strategy<Value = f64> {
        prop_oneof![
            Just(0.0),
            0.0..1e3,
            0.0..1e12,
            any::<f64>(),
            proptest::num::f64::POSITIVE | proptest::num::f64::SUBNORMAL | proptest::num::f64::INFINITE
        ]
    }

    fn sampled() -> impl Strategy<Value = CollectedRow> {
        (estimate(), estimate(), estimate(), estimate(), 0..9_usize).prop_map(
            |(objects, bytes, objects_variance, bytes_variance, stack)| CollectedRow {
                service: 0,
                stack: [stack].into(),
                samples: 1,
                objects,
                bytes,
                objects_variance,
                bytes_variance,
            },
        )
    }

    proptest! {
        #[test]
        fn any_rows_add_up_to_the_exact_figures(
            exact in prop_oneof![any::<[u64; 4]>(), any::<[u16; 4]>().prop_map(|small| small.map(u64::from))],
            sampled in proptest::collection::vec(sampled(), 0..20),
            is_complete in any::<bool>(),
        ) {
            let [bytes, blocks, bytes_before, blocks_before] = exact;
            let total =
                ServiceTotal { name: "any".into(), handle: 1, bytes, blocks, bytes_before, blocks_before };
            let rows = calibrate(&total, sampled, is_complete);
            prop_assert_eq!(rows.iter().map(|row| i128::from(row.bytes)).sum::<i128>(), i128::from(signed(bytes)));
            prop_assert_eq!(rows.iter().map(|row| i128::from(row.objects)).sum::<i128>(), i128::from(signed(blocks)));
            for row in rows {
                prop_assert!(row.bytes >= 0 && row.objects >= 0);
                prop_assert!(row.standard_error >= 0.0 && row.standard_error.is_finite());
            }
        }
    }
}
