use super::*;

fn send(regions: &Regions, message: &str) -> Result<String, DmError> {
    let words: Vec<String> = message.split(' ').map(str::to_owned).collect();
    regions.message(&words, 1000).expect("a message of ours").map(Option::unwrap_or_default)
}

fn made(messages: &[&str]) -> Regions {
    let regions = Regions::default();
    messages.iter().for_each(|message| drop(send(&regions, message).unwrap()));
    regions
}

#[test]
fn a_list_tells_what_was_asked_for() {
    let regions = made(
        &[
            "@stats_create - 100",
            "@stats_create 10+91 /3 dmstats some_data",
            "@stats_create - /7 2 precise_timestamps histogram:10,20,30 prog",
            "@STATS_CREATE 5+5 1 1 histogram:1",
            "@stats_create - 1000 0",
        ]
        .map(|text| text),
    );
    let list = "0: 0+1000 100 - -\n2: 0+1000 143 prog - precise_timestamps histogram:10,20,30\n";
    assert!(send(&regions, "@stats_list").unwrap().contains("3: 5+5 1 - - histogram:1\n"));
    send(&regions, "@stats_delete 1").unwrap();
    send(&regions, "@stats_delete 3").unwrap();
    send(&regions, "@stats_delete 4").unwrap();
    assert_eq!(send(&regions, "@stats_list").unwrap(), list);
    assert_eq!(send(&regions, "@stats_create 0+1 1").unwrap(), "1", "the lowest number that is free");
    assert_eq!(send(&regions, "@stats_create 0+1 1").unwrap(), "3");
    send(&regions, "@stats_set_aux 2 other").unwrap();
    let of_prog = send(&regions, "@stats_list prog").unwrap();
    assert_eq!(of_prog, "2: 0+1000 143 prog other precise_timestamps histogram:10,20,30\n");
    assert_eq!(send(&regions, "@stats_list nobody").unwrap(), "");
}

#[test]
fn an_area_counts_what_overlaps_it() {
    let regions = made(&["@stats_create 100+250 100 1 precise_timestamps", "@stats_create - /1 1 histogram:1,5"]);
    let list = regions.list().clone();
    let t = now();
    for region in list.iter() {
        region.begin(false, 90, 120, t);
        region.begin(true, 340, 100, t + 10);
        region.begin(false, 500, 8, t + 10);
        region.end(false, 90, 120, t + 2_000_000, 2_000_000);
        region.end(true, 340, 100, t + 6_000_010, 6_000_000);
    }
    let mut text = String::new();
    list[0].print(0..9, false, t + 8_000_000, &mut text);
    let expect = "100+100 1 0 100 2000000 0 0 0 0 0 2000000 2000000 2000000 0\n\
                  200+100 1 0 10 2000000 0 0 0 0 0 2000000 2000000 2000000 0\n\
                  300+50 0 0 0 0 1 0 10 6000000 0 6000000 6000000 0 6000000\n";
    assert_eq!(text, expect);
    text.clear();
    list[1].print(0..9, true, t + 8_000_000, &mut text);
    assert_eq!(text, "0+1000 1 0 120 2 1 0 100 6 1 8 15 8 6 0:1:1\n");
    text.clear();
    list[1].print(0..9, true, t + 9_000_000, &mut text);
    assert_eq!(text, "0+1000 0 0 0 0 0 0 0 0 1 1 1 1 0 0:0:0\n", "what is under way stays");
}

#[test]
fn a_range_of_lines_is_printed() {
    let regions = made(&["@stats_create 0+10 1"]);
    let starts = |message: &str| {
        let text = send(&regions, message).unwrap();
        text.lines().map(|line| line.split('+').next().unwrap().parse().unwrap()).collect::<Vec<u32>>()
    };
    assert_eq!(starts("@stats_print 0"), (0..10).collect::<Vec<_>>());
    assert_eq!(starts("@stats_print 0 8 100"), [8, 9]);
    assert_eq!(starts("@stats_print_clear 0 3 2"), [3, 4]);
    assert!(starts("@stats_print 0 10 1").is_empty() && starts("@stats_print 0 18446744073709551615 1").is_empty());
}

#[test]
fn wrong_words_are_refused() {
    let regions = made(&["@stats_create - /1"]);
    for message in [
        "@stats_create",
        "@stats_create -",
        "@stats_create - 0",
        "@stats_create - /0",
        "@stats_create - x",
        "@stats_create 5 1",
        "@stats_create +5 1",
        "@stats_create 5+ 1",
        "@stats_create 5+0 1",
        "@stats_create 18446744073709551615+1 1",
        "@stats_create 1+-1 1",
        "@stats_create - +1",
        "@stats_create - 1 1",
        "@stats_create - 1 1 fast",
        "@stats_create - 1 9 a",
        "@stats_create - 1 1 histogram:",
        "@stats_create - 1 1 histogram:0",
        "@stats_create - 1 1 histogram:2,2",
        "@stats_create - 1 1 histogram:2,1",
        "@stats_create - 1 1 histogram:1,a",
        "@stats_create - 1 a b c",
        "@stats_create - 1 2 histogram:1 histogram:2",
        "@stats_create - 1 a\nb",
        "@stats_delete",
        "@stats_delete x",
        "@stats_delete -1",
        "@stats_delete 0 0",
        "@stats_clear",
        "@stats_print",
        "@stats_print 0 1",
        "@stats_print 0 1 2 3",
        "@stats_print 0 a 1",
        "@stats_list a b",
        "@stats_set_aux 0",
        "@stats_set_aux 0 a b",
        "@stats_set_aux 0 a\nb",
    ] {
        let error = send(&regions, message).expect_err(message);
        assert_eq!(error.errno, libc::EINVAL, "{message:?}: {error}");
        let verb = message.split(' ').next().unwrap();
        assert_eq!(error.kernel, [format!("stats: Invalid parameters for message {verb}")]);
        assert!(error.detail.is_some(), "{message:?}: {error}");
    }
    for message in ["@stats_delete 1", "@stats_clear 7", "@stats_print 1", "@stats_print_clear 1", "@stats_set_aux 1 a"]
    {
        assert_eq!(send(&regions, message).expect_err(message).errno, libc::ENOENT);
    }
    assert_eq!(send(&regions, "@stats_list").unwrap(), "0: 0+1000 1000 - -\n", "nothing has changed");
    for message in ["@stats_frob", "@stats", "stats_list", ""] {
        assert!(regions.message(&[message.to_owned()], 1000).is_none());
    }
    assert!(regions.message(&[], 1000).is_none());
}

#[test]
fn memory_and_number_of_regions_have_bounds() {
    let regions = Regions::default();
    let long = format!("@stats_create - 1 {}", "x".repeat(MOST_WORD + 1));
    assert_eq!(send(&regions, &long).expect_err("a long name").errno, libc::EINVAL);
    for message in [
        "@stats_create 0+18446744073709551615 1",
        "@stats_create 0+1000000 1",
        "@stats_create 0+20000 1 1 histogram:1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32,33,34,35,36,37,38,39,40,41,42",
    ] {
        let error = send(&regions, message).expect_err(message);
        assert!(error.errno == libc::ENOMEM && error.to_string().contains("larger areas"), "{error}");
    }
    for n in 0..MOST_REGIONS {
        assert_eq!(send(&regions, "@stats_create 0+100 1").unwrap(), n.to_string());
    }
    assert_eq!(send(&regions, "@stats_create 0+1 1").expect_err("one too many").errno, libc::ENOMEM);
}

#[test]
fn requests_are_counted_in_the_regions_that_there_were_when_they_began() {
    let regions = made(&["@stats_create - /1"]);
    let mut watch = Watch::default();
    let completed = |id: u32| {
        let text = send(&regions, &format!("@stats_print {id}")).unwrap();
        let words: Vec<u64> = text.split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect();
        // Reads, their sectors, writes, their sectors, under way.
        (words[0], words[2], words[4], words[6], words[8])
    };
    assert!(watch.look(&regions));
    watch.begin(3, false, [(0, 8)].into_iter());
    assert_eq!(completed(0), (0, 0, 0, 0, 1));
    send(&regions, "@stats_create - /1").unwrap();
    assert!(watch.look(&regions));
    watch.begin(5, true, [(0, 8), (990, 10)].into_iter());
    watch.end(3);
    assert_eq!((completed(0), completed(1)), ((1, 8, 0, 0, 2), (0, 0, 0, 0, 2)));
    send(&regions, "@stats_delete 0").unwrap();
    watch.end(5);
    watch.end(5);
    watch.end(77);
    assert_eq!(completed(1), (0, 0, 2, 18, 0));
    send(&regions, "@stats_delete 1").unwrap();
    assert!(!watch.look(&regions));
}
