//! Pieces of which some grains are right, and what can be made of them: pure.
//!
//! A read wants hundreds of grains of each piece at once, and a piece with one wrong grain among them is wrong. Disks rot here and
//! there, so with a grain spoilt in each of `n` pieces no piece may be right as a whole, while every row has `n - 1` right ones. The
//! answers are at hand then and each of their grains is checked by itself: nothing more is asked of anybody, the range is cut into
//! *stretches*, in each of which the same pieces are right, and each stretch is made of `need` of those.
//!
//! Limit: one answer for each candidate of a read is kept, `n` in place of `need`.

use std::ops::Range;

use bytes::Bytes;

/// A wrong piece of which something is right.
pub(super) struct Torn {
    pub(super) piece_index: usize,
    /// From the start of the range that was wanted; zeros follow them.
    pub(super) bytes: Bytes,
    /// What was checked and is right, in bytes of the sector: in order, apart, and within the range.
    pub(super) right: Vec<Range<u32>>,
}

impl Torn {
    /// `None` if nothing of the range is right. `bytes` are those of the range.
    pub(super) fn within(range: &Range<u32>, piece_index: usize, bytes: Bytes, right: &[Range<u32>]) -> Option<Torn> {
        let within = right.iter().map(|right| right.start.max(range.start)..right.end.min(range.end));
        let right: Vec<Range<u32>> = within.filter(|right| !right.is_empty()).collect();
        (!right.is_empty()).then_some(Torn { piece_index, bytes, right })
    }
}

/// A part of a range, and right pieces of it.
pub(super) struct Stretch {
    /// Bytes of the sector.
    pub(super) range: Range<u32>,
    /// Each begins with the range; what is missing at its end is zeros.
    pub(super) pieces: Vec<(usize, Bytes)>,
}

impl Stretch {
    fn cut(&self, wanted: &Range<u32>) -> Stretch {
        let at = |bytes: &Bytes, byte: u32| ((byte - self.range.start) as usize).min(bytes.len());
        let cut = |(index, bytes): &(usize, Bytes)| (*index, bytes.slice(at(bytes, wanted.start)..at(bytes, wanted.end)));
        Stretch { range: wanted.clone(), pieces: self.pieces.iter().map(cut).collect() }
    }
}

/// The range in stretches with `need` right pieces or more each, out of those that are `whole` and those that are torn.
///
/// # Errors
/// How many right pieces there are where they are fewest, if that is too few.
pub(super) fn stretches(whole: Stretch, torn: &[Torn], need: usize) -> Result<Vec<Stretch>, usize> {
    if whole.pieces.len() >= need {
        return Ok(vec![whole]);
    }
    let mut ends: Vec<u32> = torn.iter().flat_map(|torn| &torn.right).flat_map(|right| [right.start, right.end]).collect();
    ends.extend([whole.range.start, whole.range.end]);
    ends.sort_unstable();
    ends.dedup();
    let parts = || ends.windows(2).map(|ends| ends[0]..ends[1]);
    let right_in = |part: &Range<u32>| {
        let part = part.clone();
        torn.iter().filter(move |torn| {
            let before = torn.right.partition_point(|right| right.start <= part.start);
            before > 0 && torn.right[before - 1].end >= part.end
        })
    };
    let fewest = parts().map(|part| whole.pieces.len() + right_in(&part).count()).min().unwrap_or(whole.pieces.len());
    if fewest < need {
        return Err(fewest);
    }
    let stretch = |part: Range<u32>| {
        let mut pieces = whole.pieces.clone();
        pieces.extend(right_in(&part).map(|torn| (torn.piece_index, torn.bytes.clone())));
        Stretch { range: whole.range.clone(), pieces }.cut(&part)
    };
    Ok(parts().map(stretch).collect())
}

/// What was made of the stretches of a range, in order, is what the range holds.
pub(super) fn join(mut made: Vec<Bytes>) -> Bytes {
    if made.len() == 1 { made.swap_remove(0) } else { Bytes::from(made.concat()) }
}

/// The range, where any piece is the same as any other: a copy. What is missing at its end is zeros.
pub(super) fn any_of(stretches: &[Stretch]) -> Bytes {
    if let [stretch] = stretches {
        return stretch.pieces[0].1.clone();
    }
    let start = stretches.first().map_or(0, |first| first.range.start);
    let mut copy = Vec::with_capacity(stretches.iter().map(|stretch| stretch.range.len()).sum());
    for stretch in stretches {
        copy.resize((stretch.range.start - start) as usize, 0);
        copy.extend_from_slice(&stretch.pieces[0].1);
    }
    Bytes::from(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Piece `index` of the range 100..200: its bytes are its own index.
    fn piece(index: usize, len: usize) -> (usize, Bytes) {
        (index, Bytes::from(vec![index as u8; len]))
    }

    fn torn(index: usize, right: &[(u32, u32)]) -> Torn {
        let (piece_index, bytes) = piece(index, 100);
        Torn { piece_index, bytes, right: right.iter().map(|(start, end)| *start..*end).collect() }
    }

    /// Start, end, and whose pieces.
    type Shape<'a> = (u32, u32, &'a [usize]);

    fn check(whole: &[usize], torn: &[Torn], need: usize, expect: Result<&[Shape<'_>], usize>) {
        let whole = Stretch { range: 100..200, pieces: whole.iter().map(|index| piece(*index, 100)).collect() };
        let found = stretches(whole, torn, need);
        let shape = found.as_ref().map_err(|fewest| *fewest).map(|stretches| {
            let indexes = |stretch: &Stretch| stretch.pieces.iter().map(|(index, _)| *index).collect::<Vec<usize>>();
            stretches.iter().map(|stretch| (stretch.range.start, stretch.range.end, indexes(stretch))).collect::<Vec<_>>()
        });
        let expect = expect.map(|expect| expect.iter().map(|(start, end, indexes)| (*start, *end, indexes.to_vec())).collect());
        assert_eq!(shape, expect);
        for stretch in found.into_iter().flatten() {
            let whole = |(index, bytes): &(usize, Bytes)| bytes[..] == vec![*index as u8; stretch.range.len()];
            assert!(stretch.pieces.iter().all(whole), "{:?}", stretch.range);
        }
    }

    #[test]
    fn a_range_is_made_of_what_is_right() {
        check(&[0, 1], &[], 2, Ok(&[(100, 200, &[0, 1])]));
        check(&[0], &[], 2, Err(1));
        check(&[], &[], 1, Err(0));
        check(&[0], &[torn(1, &[(100, 150)])], 2, Err(1));
        check(&[0], &[torn(1, &[])], 2, Err(1));
        // Enough are whole: nobody looks at the others.
        check(&[0, 1], &[torn(2, &[(100, 150)])], 2, Ok(&[(100, 200, &[0, 1])]));
        // One hole each, side by side.
        let holes = [torn(1, &[(100, 110), (120, 200)]), torn(2, &[(100, 120), (130, 200)])];
        check(&[0], &holes, 2, Ok(&[(100, 110, &[0, 1, 2]), (110, 120, &[0, 2]), (120, 130, &[0, 1]), (130, 200, &[0, 1, 2])]));
        check(&[0], &holes, 3, Err(2));
        check(&[], &holes, 1, Ok(&[(100, 110, &[1, 2]), (110, 120, &[2]), (120, 130, &[1]), (130, 200, &[1, 2])]));
        // The same hole.
        check(&[0], &[torn(1, &[(100, 110), (120, 200)]), torn(2, &[(100, 110), (120, 200)])], 2, Err(1));
        check(&[], &[torn(1, &[(100, 150)]), torn(2, &[(150, 200)])], 1, Ok(&[(100, 150, &[1]), (150, 200, &[2])]));
    }

    #[test]
    fn short_pieces_end_in_zeros() {
        let whole = Stretch { range: 100..200, pieces: vec![] };
        let mut short = torn(1, &[(100, 110), (120, 200)]);
        short.bytes.truncate(25);
        let made = stretches(whole, &[short, torn(2, &[(105, 125)])], 1).expect("somebody is right everywhere");
        let expect = [vec![1; 10], vec![2; 10], vec![1; 5]].concat();
        assert_eq!(any_of(&made), [&expect[..], &[0; 0]].concat());
        assert_eq!(made.last().map(|last| (last.range.clone(), last.pieces[0].1.len())), Some((125..200, 0)));
        let single = stretches(Stretch { range: 100..200, pieces: vec![piece(7, 3)] }, &[], 1).expect("one is enough");
        assert_eq!(any_of(&single), vec![7; 3]);
        assert_eq!(join(vec![Bytes::from_static(b"a"), Bytes::new(), Bytes::from_static(b"bc")]), "abc");
    }
}
