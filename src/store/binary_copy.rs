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
        match value {
            Some(value) => self.bytes(value.as_bytes()),
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

    /// Closes the body.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&(-1_i16).to_be_bytes());
        self.bytes
    }
}
