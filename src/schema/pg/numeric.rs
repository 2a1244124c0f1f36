//! Decimals of any length, without a big-number library: the digits that Postgres' `numeric` and JSON text both need.
//!
//! Owns the way from Avro's unscaled two's complement to groups of four decimal digits.

use crate::schema::{
    columns::MAX_NUMERIC_PRECISION,
    reader::{Cursor, Problem, fault},
};

/// Groups of four digits that `MAX_NUMERIC_PRECISION` digits fill, one more on each side of the point.
const MAX_GROUPS: usize = MAX_NUMERIC_PRECISION / 4 + 2;
/// Bytes of the longest magnitude of that many digits, and a byte for the sign.
const MAX_BYTES: usize = 416;
const LIMBS: usize = MAX_BYTES / 4;
const POWERS: [u16; 4] = [1, 10, 100, 1000];

/// A number as groups of four decimal digits, aligned at the decimal point.
pub(in crate::schema) struct Decimal {
    negative: bool,
    /// Digits after the point; below zero, as many zeros before it are not stored.
    scale: i32,
    /// Power of 10,000 of the first, most significant group.
    weight: i32,
    /// Digits of the unscaled number.
    precision: u32,
    start: usize,
    groups: [u16; MAX_GROUPS],
}

impl Decimal {
    /// From the bytes of a `decimal`, which must not have more digits than `precision`.
    pub(in crate::schema) fn of(unscaled: &[u8], precision: u32, scale: u32) -> Result<Self, Problem> {
        let scale = i32::try_from(scale).map_err(|_| too_long())?;
        let decimal = Self::from_unscaled(unscaled, scale)?;
        if decimal.precision > precision {
            return Err(overflow(precision, scale, decimal.precision));
        }
        Ok(decimal)
    }

    /// From the bytes of a `big-decimal`: the unscaled number with its length, then the scale.
    pub(in crate::schema) fn of_big(bytes: &[u8]) -> Result<Self, Problem> {
        const MOST: i64 = MAX_NUMERIC_PRECISION as i64;
        let mut cursor = Cursor::new(bytes);
        let unscaled = cursor.blob()?;
        let scale = cursor.long()?;
        cursor.finish()?;
        match i32::try_from(scale) {
            Ok(small) if (-MOST..=MOST).contains(&scale) => Self::from_unscaled(unscaled, small),
            _ => Err(fault(format_args!("a decimal of a scale within ±{MOST}"), format_args!("scale {scale}"))),
        }
    }

    fn from_unscaled(bytes: &[u8], scale: i32) -> Result<Self, Problem> {
        let Some(first) = bytes.first() else {
            return Err(fault("a decimal of at least one byte", "none"));
        };
        let negative = first & 0x80 != 0;
        let fill = if negative { 0xff } else { 0 };
        let extension = bytes.iter().take_while(|byte| **byte == fill).count();
        let significant = &bytes[extension..];
        if significant.len() > MAX_BYTES {
            return Err(too_long());
        }
        let mut decimal = Self { negative, scale, weight: 0, precision: 0, start: MAX_GROUPS, groups: [0; MAX_GROUPS] };
        if significant.len() < 8 {
            decimal.fill(&mut Word(magnitude(significant, negative)))?;
        } else {
            decimal.fill(&mut Limbs::new(significant, negative))?;
        }
        Ok(decimal)
    }

    /// Takes digits off the low end, the first group only up to the next boundary from the point.
    fn fill(&mut self, number: &mut impl Magnitude) -> Result<(), Problem> {
        let partial = self.scale.rem_euclid(4) as usize;
        let lowest = (-self.scale).div_euclid(4);
        let padding = if partial == 0 { 0 } else { 4 - partial };
        let mut first = padding > 0;
        while first || !number.is_zero() {
            if self.start == 0 {
                return Err(too_long());
            }
            self.start -= 1;
            self.groups[self.start] = if std::mem::take(&mut first) {
                number.divide(POWERS[partial]) * POWERS[padding]
            } else {
                number.divide(10_000)
            };
        }
        if let Some(top) = self.groups.get(self.start).filter(|top| **top > 0) {
            let count = MAX_GROUPS - self.start;
            self.weight = lowest + count as i32 - 1;
            self.precision = top.ilog10() + 1 + 4 * (count as u32 - 1) - padding as u32;
        } else {
            self.start = MAX_GROUPS; // zero
        }
        if self.precision as usize > MAX_NUMERIC_PRECISION { Err(too_long()) } else { Ok(()) }
    }

    /// Appends the value of a binary `numeric`, without its length.
    pub(in crate::schema) fn write_binary(&self, out: &mut Vec<u8>) {
        const NEGATIVE: u16 = 0x4000;
        let groups = &self.groups[self.start..];
        let trailing = groups.iter().rev().take_while(|group| **group == 0).count();
        let groups = &groups[..groups.len() - trailing];
        let sign = if self.negative && !groups.is_empty() { NEGATIVE } else { 0 };
        out.extend_from_slice(&(groups.len() as u16).to_be_bytes());
        out.extend_from_slice(&(self.weight as i16).to_be_bytes());
        out.extend_from_slice(&sign.to_be_bytes());
        out.extend_from_slice(&(self.scale.max(0) as u16).to_be_bytes());
        for group in groups {
            out.extend_from_slice(&group.to_be_bytes());
        }
    }

    /// Appends the number as text: `-12.30`, with as many digits after the point as the scale says.
    pub(in crate::schema) fn write_text(&self, out: &mut Vec<u8>) {
        if self.negative && self.start < MAX_GROUPS {
            out.push(b'-');
        }
        let top = self.weight.max(0);
        out.extend_from_slice(itoa::Buffer::new().format(self.group(top)).as_bytes());
        for power in (0..top).rev() {
            out.extend_from_slice(&digits(self.group(power)));
        }
        if self.scale > 0 {
            out.push(b'.');
            let end = out.len() + self.scale as usize;
            let mut power = -1;
            while out.len() < end {
                out.extend_from_slice(&digits(self.group(power)));
                power -= 1;
            }
            out.truncate(end);
        }
    }

    /// The group that stands for a power of 10,000.
    fn group(&self, power: i32) -> u16 {
        let index = usize::try_from(self.weight - power).ok();
        index.and_then(|index| self.groups[self.start..].get(index)).copied().unwrap_or(0)
    }
}

fn digits(group: u16) -> [u8; 4] {
    [group / 1000, group / 100 % 10, group / 10 % 10, group % 10].map(|digit| b'0' + digit as u8)
}

/// A number that is taken apart from its low end.
trait Magnitude {
    fn is_zero(&self) -> bool;
    /// Divides by a small number and returns the remainder.
    fn divide(&mut self, by: u16) -> u16;
}

/// At most 64 bits: nearly every decimal there is.
struct Word(u64);

impl Magnitude for Word {
    fn is_zero(&self) -> bool {
        self.0 == 0
    }

    fn divide(&mut self, by: u16) -> u16 {
        let by = u64::from(by);
        let remainder = self.0 % by;
        self.0 /= by;
        remainder as u16
    }
}

/// The magnitude of fewer than eight bytes of two's complement, without their sign extension.
fn magnitude(significant: &[u8], negative: bool) -> u64 {
    let fill = if negative { u64::MAX } else { 0 };
    let word = significant.iter().fold(fill, |word, byte| word << 8 | u64::from(*byte));
    word.cast_signed().unsigned_abs()
}

/// Words of 32 bits, least significant first.
struct Limbs {
    count: usize,
    words: [u32; LIMBS + 1],
}

impl Limbs {
    fn new(significant: &[u8], negative: bool) -> Self {
        let mut limbs = Self { count: significant.len() / 4 + 1, words: [0; LIMBS + 1] };
        for (word, chunk) in limbs.words.iter_mut().zip(significant.rchunks(4)) {
            *word = chunk.iter().fold(0, |word, byte| word << 8 | u32::from(if negative { !byte } else { *byte }));
        }
        if negative {
            for word in &mut limbs.words[..limbs.count] {
                let (sum, carries) = word.overflowing_add(1);
                *word = sum;
                if !carries {
                    break;
                }
            }
        }
        limbs
    }
}

impl Magnitude for Limbs {
    fn is_zero(&self) -> bool {
        self.words[..self.count].iter().all(|word| *word == 0)
    }

    fn divide(&mut self, by: u16) -> u16 {
        let by = u64::from(by);
        let mut remainder = 0_u64;
        for word in self.words[..self.count].iter_mut().rev() {
            let dividend = remainder << 32 | u64::from(*word);
            *word = (dividend / by) as u32;
            remainder = dividend % by;
        }
        while self.count > 1 && self.words[self.count - 1] == 0 {
            self.count -= 1;
        }
        remainder as u16
    }
}

#[cold]
fn too_long() -> Problem {
    fault(format_args!("a decimal of at most {MAX_NUMERIC_PRECISION} digits"), "a longer one")
}

#[cold]
fn overflow(precision: u32, scale: i32, digits: u32) -> Problem {
    fault(format_args!("a decimal({precision},{scale})"), format_args!("one of {digits} digits"))
}
