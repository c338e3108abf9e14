//! A service's rows are made to add up to its exact figures.
//!
//! What was sampled is an estimate; what a service holds is known to the byte. So the estimates are
//! scaled to the exact figure. What was allocated before sampling began has no call stack, and gets
//! a row of its own first: as much as is missing, but no more than can be from that time. Where nothing is
//! sampled any more, or much was dropped, the estimates are of a part only, and are not scaled up.

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
    let bytes =
        Spread::new(total.bytes, total.bytes_before, sampled.iter().map(|row| row.bytes), is_complete);
    let objects =
        Spread::new(total.blocks, total.blocks_before, sampled.iter().map(|row| row.objects), is_complete);
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
    rows.push(row(Origin::BeforeSampling, objects.before, bytes.before, at_most(variance.sqrt()), 0, none));
    rows.push(row(Origin::NotSampled, objects.rest, bytes.rest, 0.0, 0, none));
    for (i, sampled) in sampled.into_iter().enumerate() {
        let scale = bytes.shares[i] as f64 / known(sampled.bytes);
        let error = match bytes.shares[i] {
            0 => 0.0,
            _ => at_most(known(sampled.bytes_variance).sqrt() * scale),
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
    fn new(exact: u64, before_at_most: u64, estimates: impl Iterator<Item = f64>, is_complete: bool) -> Self {
        // What readers get is signed, since differences are.
        let exact = exact.min(i64::MAX as u64);
        let estimates: Vec<f64> = estimates.map(known).collect();
        let estimated = estimates.iter().sum::<f64>().round();
        // The cast saturates.
        let before = exact.saturating_sub(estimated as u64).min(before_at_most);
        let by_stack = if is_complete { exact - before } else { (exact - before).min(estimated as u64) };
        let shares = apportion(by_stack, &estimates);
        let rest = exact - before - shares.iter().sum::<u64>();
        Self { exact, before, rest, shares }
    }
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
            objects_variance: 0.0,
            bytes_variance: 0.0,
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
        // As much as is missing,
        let spread = Spread::new(1000, 900, [300.0, 100.0].into_iter(), true);
        assert_eq!((spread.before, spread.rest, &spread.shares[..]), (600, 0, &[300, 100][..]));
        // not more than there was, so that the estimates are scaled,
        let spread = Spread::new(1000, 200, [300.0, 100.0].into_iter(), true);
        assert_eq!((spread.before, spread.rest, &spread.shares[..]), (200, 0, &[600, 200][..]));
        // and nothing where the estimates are too large already.
        let spread = Spread::new(200, 200, [300.0, 100.0].into_iter(), true);
        assert_eq!((spread.before, spread.rest, &spread.shares[..]), (0, 0, &[150, 50][..]));
        // Without samples the rest is not known.
        let spread = Spread::new(1000, 200, [].into_iter(), true);
        assert_eq!((spread.before, spread.rest, spread.shares.len()), (200, 800, 0));
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
