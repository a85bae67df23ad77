// real_go ADDRESS: an HTTP server with goroutines that compute, timers and channels beside it. GET /sum?n=N gives a sum,
// /ticks whether the ticker runs, /pid its PID; SIGTERM ends it.
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func work(in <-chan uint64, out chan<- uint64, group *sync.WaitGroup) {
	defer group.Done()
	for x := range in {
		for i := 0; i < 200000; i++ {
			x = x*6364136223846793005 + 1442695040888963407
		}
		out <- x
	}
}

func sum(n uint64) (total uint64) {
	in, out, group := make(chan uint64), make(chan uint64), new(sync.WaitGroup)
	for i := 0; i < 8; i++ {
		group.Add(1)
		go work(in, out, group)
	}
	go func() {
		for i := uint64(0); i < n; i++ {
			in <- i
		}
		close(in)
		group.Wait()
		close(out)
	}()
	for x := range out {
		total += x
	}
	runtime.GC()
	return
}

func main() {
	var ticks atomic.Uint64
	go func() {
		last := time.Now()
		for now := range time.Tick(10 * time.Millisecond) {
			if now.Before(last) {
				panic("the clock went back")
			}
			last = now
			ticks.Add(1)
		}
	}()
	http.HandleFunc("/sum", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseUint(r.URL.Query().Get("n"), 10, 32)
		fmt.Fprintln(w, sum(n))
	})
	http.HandleFunc("/ticks", func(w http.ResponseWriter, r *http.Request) {
		before := ticks.Load()
		for i := 0; i < 3000 && ticks.Load() == before; i++ {
			time.Sleep(10 * time.Millisecond)
		}
		fmt.Fprintln(w, ticks.Load() > before)
	})
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		panic(err)
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	server := &http.Server{}
	go server.Serve(listener)
	fmt.Println("listening")
	<-ended
	server.Shutdown(context.Background())
	fmt.Println("bye")
}
