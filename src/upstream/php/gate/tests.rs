use proptest::prelude::*;
use tokio::task::JoinHandle;

use super::*;

const LONG: Duration = Duration::from_secs(10);

fn told(children: usize, queue: usize) -> Limits {
    Limits { children: Some(children), queue: Some(queue) }
}

fn learned() -> Limits {
    Limits { children: None, queue: None }
}

async fn enter(gate: &Arc<Gate>, limits: Limits) -> Result<Place, Refused> {
    gate.enter(limits, Instant::now() + LONG).await
}

fn waiting(gate: &Arc<Gate>, limits: Limits) -> JoinHandle<Result<Place, Refused>> {
    let gate = Arc::clone(gate);
    tokio::spawn(async move { enter(&gate, limits).await })
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_comes_first_is_first_and_beyond_the_queue_is_refused_at_once() {
    let gate = Arc::new(Gate::default());
    let limits = told(2, 3);
    let mut first = enter(&gate, limits).await.unwrap();
    let second = enter(&gate, limits).await.unwrap();
    first.begin(true);
    let mut queue = Vec::new();
    for _ in 0..3 {
        queue.push(waiting(&gate, limits));
        settle().await;
    }
    let asked = Instant::now();
    assert_eq!(enter(&gate, limits).await.unwrap_err(), Refused::Full(3));
    assert_eq!(asked.elapsed(), Duration::ZERO);
    assert_eq!(gate.load(Some(2)), (5, 2));

    drop(second);
    settle().await;
    assert!(queue[0].is_finished() && !queue[1].is_finished());
    // One that leaves in the middle makes room in the queue, and no place.
    queue.remove(1).abort();
    settle().await;
    let last = waiting(&gate, limits);
    settle().await;
    drop(first);
    settle().await;
    assert!(queue[1].is_finished() && !last.is_finished());
    drop(queue);
    settle().await;
    drop(last.await.unwrap().unwrap());
    assert_eq!(gate.load(Some(2)).0, 0);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_the_deadline() {
    let gate = Arc::new(Gate::default());
    let _place = enter(&gate, told(1, 9)).await.unwrap();
    let asked = Instant::now();
    assert_eq!(enter(&gate, told(1, 9)).await.unwrap_err(), Refused::Late);
    assert_eq!(asked.elapsed(), LONG);
    assert_eq!(gate.load(Some(1)).0, 1);
}

#[tokio::test(start_paused = true)]
async fn where_workers_are_learned_offers_are_bounded_and_running_requests_are_counted() {
    let gate = Arc::new(Gate::default());
    let mut places = Vec::new();
    for _ in 0..OFFERS {
        places.push(enter(&gate, learned()).await.unwrap());
    }
    let next = waiting(&gate, learned());
    settle().await;
    assert!(!next.is_finished(), "an offer too many");
    places[0].begin(true);
    settle().await;
    places.push(next.await.unwrap().unwrap());
    places[1].begin(true);
    assert_eq!(gate.note_late(Instant::now()), Some(2));
    assert_eq!(gate.note_late(Instant::now()), None, "it is told once in a while");
    assert_eq!(gate.load(None).1, 2);
    // FPM has started one more worker.
    places[2].begin(true);
    assert_eq!(gate.load(None).1, 3);
    places[2].begin_again();
    assert_eq!(gate.note_late(Instant::now() + TOLD_EVERY), Some(2));
    drop(places);
    assert_eq!(gate.load(None), (0, 2));
}

#[derive(Debug, Clone)]
enum Step {
    Come,
    Leave(usize),
    Begin(usize),
    Again(usize),
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Come),
        3 => any::<usize>().prop_map(Step::Leave),
        3 => any::<usize>().prop_map(Step::Begin),
        1 => any::<usize>().prop_map(Step::Again),
        1 => Just(Step::Wait),
    ]
}

async fn walk(steps: Vec<Step>, children: usize, queue: usize) {
    let gate = Arc::new(Gate::default());
    let limits = told(children, queue);
    let mut asked: VecDeque<(usize, JoinHandle<Result<Place, Refused>>)> = VecDeque::new();
    let mut places: Vec<Place> = Vec::new();
    let (mut next, mut last) = (0, None);
    for step in steps {
        match step {
            Step::Come => {
                asked.push_back((next, waiting(&gate, limits)));
                next += 1;
            }
            Step::Leave(at) if at % 2 == 0 && !asked.is_empty() => {
                // Perhaps in the very moment in which its turn has come.
                let at = at % asked.len();
                asked.remove(at).unwrap().1.abort();
                if !places.is_empty() {
                    places.swap_remove(at % places.len());
                }
            }
            Step::Leave(at) if !places.is_empty() => drop(places.swap_remove(at % places.len())),
            Step::Begin(at) if !places.is_empty() => {
                let at = at % places.len();
                places[at].begin(true);
            }
            Step::Again(at) if !places.is_empty() => {
                let at = at % places.len();
                places[at].begin_again();
            }
            Step::Leave(_) | Step::Begin(_) | Step::Again(_) => {}
            Step::Wait => tokio::time::advance(LONG).await,
        }
        settle().await;
        let mut still = VecDeque::new();
        for (id, task) in asked.drain(..) {
            if !task.is_finished() {
                still.push_back((id, task));
            } else if let Ok(place) = task.await.unwrap() {
                assert!(last.is_none_or(|last| last < id), "{id} was let in behind {last:?}");
                last = Some(id);
                places.push(place);
            }
        }
        asked = still;
        assert!(places.len() <= children && asked.len() <= queue, "{} places, {} wait", places.len(), asked.len());
        assert!(asked.is_empty() || places.len() == children, "a place is free and somebody waits");
        assert_eq!(gate.load(Some(children)).0, places.len() + asked.len());
    }
    drop((asked.drain(..).for_each(|(_, task)| task.abort()), places));
    settle().await;
    assert_eq!(gate.load(Some(children)).0, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn places_never_exceed_are_given_in_turn_and_all_come_back(
        steps in proptest::collection::vec(step(), 0..60), children in 1_usize..5, queue in 0_usize..6
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(walk(steps, children, queue));
    }
}

#[tokio::test]
async fn a_few_offers_are_left_for_those_whose_taking_is_seen() {
    let gate = Arc::new(Gate::default());
    let mut places = vec![enter(&gate, learned()).await.unwrap()];
    assert!(!gate.may_be_whole(None), "nothing is known");
    gate.note_answer(Some(QUICK));
    assert!(!gate.may_be_whole(None), "a slow one");
    gate.note_answer(Some(QUICK / 2));
    for _ in 0..UNSEEN {
        assert!(gate.may_be_whole(None));
        places.push(enter(&gate, learned()).await.unwrap());
    }
    assert!(!gate.may_be_whole(None) && gate.may_be_whole(Some(99)));
    places[0].begin(true);
    assert!(gate.may_be_whole(None));
    gate.note_answer(None);
    assert!(!gate.may_be_whole(None), "one that failed");
}
