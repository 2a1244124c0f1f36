//! Where a record would go: for those who send by a producer of their own and want to know beforehand what could not be
//! sent.

use super::{NotSent, Publisher, RECORD_OVERHEAD};
use crate::kafka::murmur2;

impl Publisher {
    /// The partition for a record of that key, if it can be written now; `bytes` are those of key, value and headers. Of a
    /// topic that was not looked up yet ([`Self::partitions_of`]) it is said that it is unknown.
    pub fn placement(&self, topic: &str, key: Option<&[u8]>, bytes: usize) -> Result<i32, NotSent> {
        let known = self.shared.state.topics.get(topic);
        let known = known.ok_or_else(|| NotSent::UnknownTopic { topic: topic.into() })?;
        let (bytes, limit) = (bytes + RECORD_OVERHEAD, self.shared.options.max_record_bytes);
        if bytes > limit {
            return Err(NotSent::RecordTooLarge { index: 0, bytes, limit });
        }
        let partition = match key {
            Some(key) => murmur2::partition_of(key, known.partitions.len() as u32),
            None => known.sticky(bytes),
        };
        let open = usize::try_from(partition).ok().and_then(|at| known.partitions.get(at)).is_some_and(|p| p.is_open());
        if open { Ok(partition) } else { Err(known.closed(partition)) }
    }

    /// Has the topics looked at soon: something could not be written.
    pub fn look_again(&self) {
        self.shared.state.wake_scout();
    }
}
