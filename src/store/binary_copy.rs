//! Rows in the binary format of COPY (Postgres manual, "COPY", section "Binary Format").

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Microseconds from the Unix epoch to 2000-01-01, Postgres' own.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A growing COPY body. Fields are appended in column order; a row that turns out faulty is taken back.
pub struct CopyBuffer {
    bytes: Vec<u8>,
    rows: usize,
    row_start: usize,
}

impl Default for CopyBuffer {
    fn default() -> Self {
        Self { bytes: SIGNATURE.to_vec(), rows: 0, row_start: SIGNATURE.len() }
    }
}

impl CopyBuffer {
    pub fn begin_row(&mut self, columns: i16) {
        self.row_start = self.bytes.len();
        self.rows += 1;
        self.bytes.extend_from_slice(&columns.to_be_bytes());
    }

    /// Takes the row begun last back.
    pub fn undo_row(&mut self) {
        self.bytes.truncate(self.row_start);
        self.rows -= 1;
    }

    pub fn null(&mut self) {
        self.bytes.extend_from_slice(&(-1_i32).to_be_bytes());
    }

    /// A field of raw bytes: `text`, `bytea`, `uuid`. Longer than 2 GiB cannot come out of a Kafka record.
    pub fn bytes(&mut self, value: &[u8]) {
        let length = i32::try_from(value.len()).expect("invariant: a field is shorter than 2 GiB");
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(value);
    }

    pub fn text_or_null(&mut self, value: Option<&str>) {
        self.bytes_or_null(value.map(str::as_bytes));
    }

    pub fn bytes_or_null(&mut self, value: Option<&[u8]>) {
        match value {
            Some(value) => self.bytes(value),
            None => self.null(),
        }
    }

    pub fn int4(&mut self, value: i32) {
        self.bytes(&value.to_be_bytes());
    }

    pub fn int8(&mut self, value: i64) {
        self.bytes(&value.to_be_bytes());
    }

    /// A `timestamptz` from milliseconds since the Unix epoch, as Kafka gives them.
    pub fn timestamp_millis(&mut self, millis: i64) {
        self.int8(millis.saturating_mul(1000).saturating_sub(POSTGRES_EPOCH_MICROS));
    }

    /// A `jsonb` from JSON text: version byte 1, then the text.
    pub fn jsonb(&mut self, json: &str) {
        let length = i32::try_from(json.len() + 1).expect("invariant: a field is shorter than 2 GiB");
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.push(1);
        self.bytes.extend_from_slice(json.as_bytes());
    }

    /// The body so far, for a writer that appends whole fields itself (4 bytes of length, then the value).
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Keeps, of the rows with equal bytes in one field, only the last, and sorts what is left by that field. Rows in
    /// which it is null all stay, behind the others.
    pub fn keep_last_by(&mut self, field: usize) {
        let mut rows: Vec<(Option<&[u8]>, &[u8])> = Vec::with_capacity(self.rows);
        let mut rest = self.bytes.get(SIGNATURE.len()..).unwrap_or_default();
        while let Some((key, row, tail)) = split_row(rest, field) {
            rows.push((key, row));
            rest = tail;
        }
        // Stable: rows of one key stay in their order.
        rows.sort_by(|(a, _), (b, _)| (a.is_none(), a).cmp(&(b.is_none(), b)));
        let mut kept = Vec::with_capacity(self.bytes.len());
        kept.extend_from_slice(SIGNATURE);
        let mut count = 0;
        for (at, (key, row)) in rows.iter().enumerate() {
            let superseded = key.is_some() && rows.get(at + 1).is_some_and(|(next, _)| next == key);
            if !superseded {
                kept.extend_from_slice(row);
                count += 1;
            }
        }
        self.row_start = kept.len();
        (self.bytes, self.rows) = (kept, count);
    }

    /// The rows with these of their fields alone, in this order.
    pub fn select(&self, fields: &[usize]) -> Self {
        let mut selected = Self { bytes: Vec::with_capacity(self.bytes.len()), ..Self::default() };
        selected.bytes.extend_from_slice(SIGNATURE);
        let columns = i16::try_from(fields.len()).expect("invariant: a table has at most 1,600 columns");
        let mut rest = self.bytes.get(SIGNATURE.len()..).unwrap_or_default();
        let mut row = Vec::new();
        while let Some(tail) = fields_of(rest, &mut row) {
            selected.begin_row(columns);
            fields.iter().filter_map(|field| row.get(*field)).for_each(|field| selected.bytes.extend_from_slice(field));
            rest = tail;
        }
        selected
    }

    /// Closes the body.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&(-1_i16).to_be_bytes());
        self.bytes
    }
}

/// Cuts the first row into its fields, each with its length before it; returns what follows, none at the end.
fn fields_of<'a>(bytes: &'a [u8], fields: &mut Vec<&'a [u8]>) -> Option<&'a [u8]> {
    fields.clear();
    let (columns, mut rest) = bytes.split_first_chunk::<2>()?;
    for _ in 0..u16::from_be_bytes(*columns) {
        let length = i32::from_be_bytes(*rest.first_chunk()?);
        // A null has the length -1 and no bytes.
        let (field, tail) = rest.split_at_checked(4 + usize::try_from(length).unwrap_or(0))?;
        fields.push(field);
        rest = tail;
    }
    Some(rest)
}

/// One field of a row, the whole row, and what follows it.
type SplitRow<'a> = (Option<&'a [u8]>, &'a [u8], &'a [u8]);

/// Cuts the first row off; none at the end.
fn split_row(bytes: &[u8], field: usize) -> Option<SplitRow<'_>> {
    let (columns, mut rest) = bytes.split_first_chunk::<2>()?;
    let mut found = None;
    for column in 0..u16::from_be_bytes(*columns) {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        // A null has the length -1 and no bytes.
        let length = usize::try_from(i32::from_be_bytes(*length)).ok();
        let (value, tail) = tail.split_at_checked(length.unwrap_or(0))?;
        if usize::from(column) == field {
            found = length.map(|_| value);
        }
        rest = tail;
    }
    let (row, tail) = bytes.split_at(bytes.len() - rest.len());
    Some((found, row, tail))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn body(rows: &[(Option<u8>, i64)]) -> CopyBuffer {
        let mut body = CopyBuffer::default();
        for (key, value) in rows {
            body.begin_row(2);
            body.int8(*value);
            match key {
                Some(key) => body.bytes(&[*key]),
                None => body.null(),
            }
        }
        body
    }

    proptest! {
        #[test]
        fn fields_are_selected_in_the_order_asked_for(
            rows in prop::collection::vec((prop::option::of(0_u8..6), any::<i64>()), 0..30),
        ) {
            let mut expected = CopyBuffer::default();
            for (key, value) in &rows {
                expected.begin_row(3);
                let key = key.as_ref().map(std::slice::from_ref);
                // Twice is an order, too.
                expected.bytes_or_null(key);
                expected.int8(*value);
                expected.bytes_or_null(key);
            }
            let selected = body(&rows).select(&[1, 0, 1]);
            prop_assert_eq!(selected.rows(), rows.len());
            prop_assert_eq!(selected.finish(), expected.finish());
        }

        #[test]
        fn last_row_of_each_key_is_kept_in_the_order_of_keys(
            rows in prop::collection::vec((prop::option::weighted(0.9, 0_u8..6), any::<i64>()), 0..30),
        ) {
            let last: BTreeMap<u8, i64> = rows.iter().filter_map(|(key, value)| Some(((*key)?, *value))).collect();
            let nulls = rows.iter().filter(|(key, _)| key.is_none()).copied();
            let expected: Vec<_> = last.into_iter().map(|(key, value)| (Some(key), value)).chain(nulls).collect();
            let mut kept = body(&rows);
            kept.keep_last_by(1);
            prop_assert_eq!(kept.rows(), expected.len());
            prop_assert_eq!(kept.finish(), body(&expected).finish());
        }
    }
}
