//! In which batches the events of a case are applied. Pure.
//!
//! A plan never breaks the promise of Kafka: the events of one partition come in their order.

use std::collections::BTreeMap;

/// Batches of events, each of one partition; events by their place in the case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Plan {
    pub batches: Vec<Vec<usize>>,
    /// Each batch comes with everything before it of its partition, and at the end all come once more.
    pub redeliver: bool,
}

impl Plan {
    /// Every event a batch, in the order of the case. What all other plans are compared with.
    pub fn one_by_one(events: impl IntoIterator<Item = usize>) -> Self {
        Self { batches: events.into_iter().map(|event| vec![event]).collect(), redeliver: false }
    }

    /// Batches of `size`, in the order of their last events. `slots` has the partition of every event.
    pub fn of_size(slots: &[usize], size: usize) -> Self {
        let mut batches: Vec<Vec<usize>> =
            by_slot(slots).values().flat_map(|events| events.chunks(size).map(<[usize]>::to_vec)).collect();
        batches.sort_by_key(|batch| batch.last().copied());
        Self { batches, redeliver: false }
    }

    /// Everything of a partition at once, one partition after another: how a rebuild reads the log.
    pub fn whole(slots: &[usize]) -> Self {
        Self { batches: by_slot(slots).into_values().collect(), redeliver: false }
    }

    /// Random cuts, and partitions in random turns.
    pub fn random(slots: &[usize], random: &mut Random) -> Self {
        // Some plans of small batches, some of large ones.
        let cut_in = 1 + random.below(5);
        let mut queues: Vec<Vec<Vec<usize>>> = Vec::new();
        for events in by_slot(slots).into_values() {
            let mut batches: Vec<Vec<usize>> = Vec::new();
            for event in events {
                match batches.last_mut() {
                    Some(batch) if random.below(cut_in) > 0 => batch.push(event),
                    _ => batches.push(vec![event]),
                }
            }
            batches.reverse();
            queues.push(batches);
        }
        let mut batches = Vec::new();
        while !queues.is_empty() {
            let turn = random.below(queues.len());
            batches.extend(queues[turn].pop());
            queues.retain(|queue| !queue.is_empty());
        }
        Self { batches, redeliver: false }
    }

    pub fn redelivered(mut self) -> Self {
        self.redeliver = true;
        self
    }

    /// The events, in the order of the case.
    pub fn events(&self) -> Vec<usize> {
        let mut events: Vec<usize> = self.batches.iter().flatten().copied().collect();
        events.sort_unstable();
        events
    }

    /// The same plan with fewer events.
    pub fn without(&self, events: &[usize]) -> Self {
        let keep = |batch: &Vec<usize>| batch.iter().copied().filter(|e| !events.contains(e)).collect::<Vec<_>>();
        let batches = self.batches.iter().map(keep).filter(|batch| !batch.is_empty()).collect();
        Self { batches, redeliver: self.redeliver }
    }

    /// Plans that are one step nearer to one by one: a batch cut in two, or two batches put in the order of the case.
    pub fn tamer(&self) -> Vec<Self> {
        let mut plans = Vec::new();
        for (at, batch) in self.batches.iter().enumerate() {
            for cut in 1..batch.len() {
                let mut batches = self.batches.clone();
                let tail = batches[at].split_off(cut);
                batches.insert(at + 1, tail);
                plans.push(Self { batches, redeliver: self.redeliver });
            }
        }
        // Batches of one partition are in order already, so those that are not may change places.
        for at in 1..self.batches.len() {
            if self.batches[at][0] < self.batches[at - 1][0] {
                let mut batches = self.batches.clone();
                batches.swap(at - 1, at);
                plans.push(Self { batches, redeliver: self.redeliver });
            }
        }
        plans
    }
}

fn by_slot(slots: &[usize]) -> BTreeMap<usize, Vec<usize>> {
    let mut events: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (event, slot) in slots.iter().enumerate() {
        events.entry(*slot).or_default().push(event);
    }
    events
}

/// Numbers that are the same in every run (splitmix64): a test that fails must fail again.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound` (> 0).
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // The remainder is below a usize.
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every event once, batches of one partition, partitions in order.
    fn is_sound(plan: &Plan, slots: &[usize]) -> bool {
        let order: Vec<usize> = plan.batches.iter().flatten().copied().collect();
        let of_one = plan.batches.iter().all(|b| !b.is_empty() && b.iter().all(|e| slots[*e] == slots[b[0]]));
        let in_order = (0..=slots.iter().copied().max().unwrap_or(0))
            .all(|slot| order.iter().filter(|e| slots[**e] == slot).collect::<Vec<_>>().is_sorted());
        of_one && in_order && plan.events() == (0..slots.len()).collect::<Vec<_>>()
    }

    /// Falls with every step of [`Plan::tamer`].
    fn wildness(plan: &Plan) -> (usize, usize) {
        let heads: Vec<usize> = plan.batches.iter().map(|b| b[0]).collect();
        let turned = (0..heads.len()).flat_map(|b| (0..b).map(move |a| (a, b)));
        (plan.batches.iter().map(|b| b.len() - 1).sum(), turned.filter(|(a, b)| heads[*a] > heads[*b]).count())
    }

    proptest! {
        #[test]
        fn plans_keep_the_order_of_partitions(
            slots in prop::collection::vec(0..4_usize, 0..24), seed in any::<u64>(), size in 1..6_usize,
        ) {
            let random = Plan::random(&slots, &mut Random::new(seed));
            prop_assert!(is_sound(&random, &slots));
            prop_assert!(is_sound(&Plan::whole(&slots), &slots));
            prop_assert!(is_sound(&Plan::of_size(&slots, size), &slots));
            prop_assert!(is_sound(&Plan::one_by_one(0..slots.len()), &slots));
            for tamer in random.tamer() {
                prop_assert!(is_sound(&tamer, &slots));
                prop_assert!(wildness(&tamer) < wildness(&random));
            }
        }

        #[test]
        fn tamest_plan_is_one_by_one(slots in prop::collection::vec(0..3_usize, 1..10), seed in any::<u64>()) {
            let mut plan = Plan::random(&slots, &mut Random::new(seed));
            while let Some(tamer) = plan.tamer().into_iter().next() {
                plan = tamer;
            }
            prop_assert_eq!(plan, Plan::one_by_one(0..slots.len()));
        }
    }

    #[test]
    fn random_plans_of_one_seed_are_the_same() {
        let plan = |seed| Plan::random(&[0, 1, 0, 1, 0, 0, 1, 2], &mut Random::new(seed));
        assert_eq!(plan(7), plan(7));
        let plans: std::collections::BTreeSet<Plan> = (0..50).map(plan).collect();
        assert!(plans.len() > 40);
    }

    #[test]
    fn events_left_out_leave_no_empty_batch() {
        let plan = Plan { batches: vec![vec![0, 2], vec![1], vec![3]], redeliver: false };
        assert_eq!(plan.without(&[1, 2]).batches, [vec![0], vec![3]]);
    }
}
