//! Families of services as trees.

/// Returns rows with their depths, children behind their parents, and those with the larger keys first.
///
/// What was read may have parents that are none, or that are their own descendants: such rows stand alone.
pub fn arrange<K: Ord>(
    rows: usize,
    parent: impl Fn(usize) -> Option<usize>,
    key: impl Fn(usize) -> K,
) -> Vec<(usize, usize)> {
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); rows];
    let mut open: Vec<(usize, usize)> = Vec::new();
    // The smallest first, since the last is taken first. Equals stay in their order.
    let mut order: Vec<usize> = (0..rows).rev().collect();
    order.sort_by_key(|row| key(*row));
    for &row in &order {
        match parent(row).filter(|parent| *parent < rows) {
            Some(parent) => children[parent].push(row),
            None => open.push((row, 0)),
        }
    }
    let mut arranged = Vec::with_capacity(rows);
    let mut is_there = vec![false; rows];
    let mut others = order.into_iter().rev().map(|row| (row, 0));
    while let Some((row, depth)) = open.pop().or_else(|| others.find(|(row, _)| !is_there[*row])) {
        if !std::mem::replace(&mut is_there[row], true) {
            arranged.push((row, depth));
            open.extend(children[row].iter().map(|child| (*child, depth + 1)));
        }
    }
    arranged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_follow_their_parents() {
        let parents = [None, Some(2), None, Some(2), Some(1)];
        let keys = [5, 1, 9, 4, 0];
        let arranged = arrange(5, |row| parents[row], |row| keys[row]);
        assert_eq!(arranged, [(2, 0), (3, 1), (1, 1), (4, 2), (0, 0)]);
        // Equals stay in their order.
        assert_eq!(arrange(3, |_| None, |_| 0), [(0, 0), (1, 0), (2, 0)]);
    }

    #[test]
    fn each_row_is_there_once_whatever_its_parent_is() {
        let parents = [Some(1), Some(0), Some(2), Some(99), None];
        let mut rows: Vec<usize> =
            arrange(5, |row| parents[row], |row| row).into_iter().map(|(row, _)| row).collect();
        rows.sort_unstable();
        assert_eq!(rows, [0, 1, 2, 3, 4]);
    }
}
