//! Who is let in, who makes room, and how long patience lasts.

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    connections: 8,
    per_client: 3,
    requests: 8,
    resets: 4,
    head: Duration::from_secs(10),
    idle: Duration::from_secs(60),
    write: Duration::from_secs(20),
};

fn connections(limits: Limits) -> Arc<Connections> {
    Arc::new(Connections::new(limits))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A request that is answered and whose answer is taken.
fn whole(place: &Arc<Place>) {
    let mut request = place.begin(true);
    request.answer();
    request.is_taken();
}

fn told(activity: &Activity) -> Option<Order> {
    futures_util::FutureExt::now_or_never(activity.told())
}

#[test]
fn address_has_its_share_whoever_else_is_there() {
    let all = connections(LIMITS);
    let first: Vec<Place> = (0..3).map(|_| all.admit(ip("10.0.0.1")).ok().unwrap()).collect();
    assert_eq!(all.admit(ip("10.0.0.1")).err(), Some(Refused::Client));
    assert_eq!(all.admit(ip("::ffff:10.0.0.1")).err(), Some(Refused::Client));
    let other = all.admit(ip("10.0.0.2")).ok().unwrap();
    assert!(Arc::ptr_eq(&first[0].client, &first[2].client) && !Arc::ptr_eq(&first[0].client, &other.client));
    drop(first);
    assert!(all.admit(ip("10.0.0.1")).is_ok());
    assert_eq!(all.lock().clients.len(), 1, "who has gone is forgotten");
}

#[test]
fn network_of_ipv6_is_one_client() {
    let all = connections(LIMITS);
    let places: Vec<Place> = (1..4).map(|n| all.admit(ip(&format!("2001:db8::{n}"))).ok().unwrap()).collect();
    assert_eq!(&*places[0].client.name, "2001:db8::/64");
    assert_eq!(all.admit(ip("2001:db8::9")).err(), Some(Refused::Client));
    assert!(all.admit(ip("2001:db8:0:1::9")).is_ok());
}

#[test]
fn nobody_is_let_in_while_many_that_made_room_are_not_gone() {
    use futures_util::FutureExt as _;
    let all = connections(Limits { per_client: 1000, ..LIMITS });
    let client = ip("10.0.0.1");
    let mut places: Vec<Place> = (0..LIMITS.connections + LEAVING).map(|_| all.admit(client).ok().unwrap()).collect();
    assert_eq!(all.let_leave().now_or_never(), None);
    let leaving = places.iter().position(|place| told(&place.activity) == Some(Order::Cut)).unwrap();
    places.remove(leaving);
    assert_eq!(all.let_leave().now_or_never(), Some(()));
    drop(places);
    let table = all.lock();
    assert_eq!((table.leaving, table.open()), (0, 0));
}

#[test]
fn longest_idle_connection_makes_room() {
    let all = connections(Limits { per_client: 8, ..LIMITS });
    let places: Vec<Arc<Place>> = (0..8)
        .map(|_| {
            all.clock.fetch_add(1, Relaxed);
            Arc::new(all.admit(ip("10.0.0.1")).ok().unwrap())
        })
        .collect();
    let busy = places[0].begin(false);
    let _ninth = all.admit(ip("10.0.0.2")).ok().unwrap();
    assert_eq!(told(&places[1].activity), Some(Order::Cut), "the oldest that has no request");
    assert_eq!(told(&places[0].activity), None);
    drop(busy);
}

#[test]
fn patience_ends_for_each_in_its_own_time() {
    let all = connections(LIMITS);
    let place = Arc::new(all.admit(ip("10.0.0.1")).ok().unwrap());
    let judge = |now: u32| all.patience.judge(&place.activity, now).and_then(|(_, reason)| reason);
    assert_eq!(all.tick, LONGEST_TICK);
    assert_eq!((judge(11), judge(13)), (None, Some("no_request")));
    whole(&place);
    assert_eq!((judge(13), judge(61), judge(63)), (None, None, Some("idle")));
    let mut request = place.begin(true);
    assert_eq!(judge(1000), None, "a handler has limits of its own");
    request.answer();
    assert_eq!((judge(20), judge(23)), (None, Some("stalled")), "the answer is ready, and not taken");
}

#[test]
fn client_that_gives_up_most_requests_loses_the_connection_and_others_do_not() {
    let all = connections(LIMITS);
    let [rapid, patient] = [(); 2].map(|()| Arc::new(all.admit(ip("10.0.0.1")).ok().unwrap()));
    for _ in 0..5 {
        drop(rapid.begin(true));
        whole(&patient);
        drop(patient.begin(true));
    }
    assert_eq!(told(&rapid.activity), Some(Order::Cut));
    assert_eq!(told(&patient.activity), None);
}

#[test]
fn request_has_room_on_a_connection_of_its_own_longer_than_on_a_shared_one() {
    let all = connections(LIMITS);
    let [greedy, modest] = [(); 2].map(|()| Arc::new(all.admit(ip("10.0.0.1")).ok().unwrap()));
    let under_way: Vec<UnderWay> = (0..4).map(|_| greedy.begin(true)).collect();
    assert!(!greedy.has_room() && modest.has_room());
    drop(under_way);
    assert!(greedy.has_room());
}

proptest! {
    /// Whatever comes and goes: nobody is above a bound, and at the end nothing is left.
    #[test]
    fn bounds_hold_and_everything_is_given_back(
        steps in prop::collection::vec((0_u8..4, 0_u8..5, any::<prop::sample::Index>()), 0..200),
    ) {
        let all = connections(LIMITS);
        let (mut places, mut requests) = (Vec::<Arc<Place>>::new(), Vec::new());
        for (step, client, index) in steps {
            match step {
                0 | 1 => places.extend(all.admit(ip(&format!("10.0.0.{client}"))).ok().map(Arc::new)),
                2 if !places.is_empty() => drop(places.swap_remove(index.index(places.len()))),
                3 if !places.is_empty() => requests.push(places[index.index(places.len())].begin(false)),
                _ => drop(requests.pop()),
            }
            let table = all.lock();
            prop_assert!(table.open() <= LIMITS.connections);
            prop_assert!(table.clients.values().all(|peer| peer.connections <= LIMITS.per_client));
        }
        drop((places, requests));
        prop_assert_eq!(all.lock().open(), 0);
        prop_assert!(all.lock().clients.is_empty());
        prop_assert_eq!(all.requests.load(Relaxed), 0);
    }
}
