//! Whether memory.stat can have changed since it was read: half of a sweep over the hot files is this one, and most containers
//! stand still most of the time, frozen and empty ones always.
//!
//! It is taken over from the row before only if all of these say that the file would give the same: the kernel's own sums of its
//! numbers, and the changes that it has not summed up yet, bear the same mark as before it was read, the mark being made by the
//! very look of the lane that the row is dated by; memory.current, swap, events and pids are as they were in every look
//! since; and nobody in the cgroup has used any CPU. Before Linux 6.8 the kernel does not tell of one cgroup what is not summed up: a row
//! may there be as old as its sums, 2 s, where reading the file might have renewed them. A slow sample reads it in any case.
//! Without the walk there is no mark, and it is read each time.

use crate::recorder::{MASK_WORDS, Row};

/// Rows after which one that stands still is at rest.
const AT_REST: u8 = 3;

#[derive(Clone, Debug, Default)]
pub struct Still {
    /// Of the latest look, if it made one.
    mark: Option<u32>,
    moved: bool,
    read: Option<Read>,
    /// Rows in a row that took it over.
    rows: u8,
    /// What it gave then, in the order of the columns; kept without a reading so that the next finds room.
    values: Vec<u64>,
}

/// What was the case when it was read.
#[derive(Clone, Copy, Debug)]
struct Read {
    mark: u32,
    usage_usec: u64,
    columns: [u64; MASK_WORDS],
}

impl Still {
    /// A look of the lane: whether one of its values is another one than at the look before, and the mark if one was made.
    pub fn look(&mut self, moved: bool, mark: Option<u32>) {
        self.moved |= moved;
        self.mark = mark;
    }

    /// Sets what memory.stat has given into the row, if it would give the same at the latest look.
    pub(super) fn take_over(&mut self, usage_usec: Option<u64>, row: &Row) -> bool {
        let same = |r: &&Read| self.mark == Some(r.mark) && usage_usec == Some(r.usage_usec) && !self.moved;
        let Some(read) = self.read.as_ref().filter(same) else { return false };
        row.set_all(&read.columns, &self.values);
        self.rows = self.rows.saturating_add(1);
        true
    }

    /// It has not been read for so many rows that its file need not stay open.
    pub(super) fn is_at_rest(&self) -> bool {
        self.rows >= AT_REST
    }

    /// It was read into the row, after the latest look.
    pub(super) fn read(&mut self, usage_usec: Option<u64>, columns: [u64; MASK_WORDS], row: &Row) {
        self.moved = false;
        self.rows = 0;
        self.read = self.mark.zip(usage_usec).map(|(mark, usage_usec)| Read { mark, usage_usec, columns });
        self.values.clear();
        if self.read.is_some() {
            row.copy(&columns, &mut self.values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder;

    const COLUMNS: [u64; MASK_WORDS] = {
        let mut columns = [0; MASK_WORDS];
        columns[0] = 0b101;
        columns
    };

    /// What a row gets of it.
    fn taken(s: &mut Still, usage_usec: Option<u64>) -> Option<Vec<u64>> {
        let row = recorder::build().1.handles().0;
        let (is_taken, mut values) = (s.take_over(usage_usec, &row), Vec::new());
        let columns = row.take(&mut values);
        assert_eq!(columns, if is_taken { COLUMNS } else { [0; MASK_WORDS] });
        is_taken.then_some(values)
    }

    /// Read behind a look that made a mark.
    fn read() -> Still {
        let mut s = Still::default();
        s.look(true, Some(7));
        assert_eq!(taken(&mut s, Some(5)), None, "never read");
        let row = recorder::build().1.handles().0;
        row.set_all(&COLUMNS, &[3, 4]);
        s.read(Some(5), COLUMNS, &row);
        s
    }

    #[test]
    fn what_stands_still_in_all_respects_is_taken_over() {
        let mut s = read();
        s.look(false, None);
        assert_eq!(taken(&mut s, Some(5)), None, "the latest look made no mark");
        s.look(false, Some(7));
        assert_eq!(taken(&mut s, Some(5)), Some(vec![3, 4]));
        assert!(!s.is_at_rest());
        (1..AT_REST).for_each(|_| _ = taken(&mut s, Some(5)));
        assert!(s.is_at_rest());
        s.read(Some(5), COLUMNS, &recorder::build().1.handles().0);
        assert!(!s.is_at_rest());
    }

    #[test]
    fn whatever_moves_has_it_read() {
        let changed = |look: fn(&mut Still)| {
            let mut s = read();
            look(&mut s);
            taken(&mut s, Some(5)).is_none()
        };
        assert!(changed(|s| s.look(false, Some(8))), "its sums");
        assert!(changed(|s| s.look(true, Some(7))), "a value of the lane");
        assert!(
            changed(|s| {
                s.look(true, None);
                s.look(false, Some(7));
            }),
            "a value of the lane that has come back"
        );
        assert!(!changed(|s| s.look(false, Some(7))));
        assert!(taken(&mut read(), Some(6)).is_none(), "somebody ran");
        assert!(taken(&mut read(), None).is_none(), "nobody knows whether somebody ran");
    }

    #[test]
    fn without_a_mark_it_is_read_each_time() {
        let mut s = Still::default();
        s.look(false, None);
        s.read(Some(5), COLUMNS, &recorder::build().1.handles().0);
        s.look(false, Some(7));
        assert_eq!(taken(&mut s, Some(5)), None);
    }
}
