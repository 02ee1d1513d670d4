package tunnel_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// greeter stands for a node in the closed network: it greets and hangs up.
func greeter(context.Context, string, string) (net.Conn, error) {
	near, far := tunneltest.Pipe()
	go func() {
		defer far.Close()
		_, _ = io.WriteString(far, "hello from behind the tunnel")
	}()
	return near, nil
}

// await waits until a server has an agent of a cluster.
func await(s *tunnel.Server, cluster string) {
	for !s.HasAgent(cluster) {
		time.Sleep(time.Millisecond)
	}
}

// A server in the seed and an agent in the closed network. The agent dials
// out; the server dials through it. FixedCluster stands in for certificates,
// and an in-memory network for the real one.
func ExampleServer() {
	var network tunneltest.Network
	l, err := network.Listen("tcp", "seed:8080")
	if err != nil {
		fmt.Println(err)
		return
	}
	server := &tunnel.Server{AgentAuth: tunnel.FixedCluster("shoot-a")}
	go server.Serve(l)
	defer server.Close()

	agent := &tunnel.Agent{Servers: []string{"http://seed:8080"}, Dial: network.Host("node").Dial, DialTarget: greeter}
	go agent.Run(context.Background())
	defer agent.Close()
	await(server, "shoot-a")

	// What Dialer returns fits into an http.Transport and the like.
	dial := server.Dialer("shoot-a")
	conn, err := dial(context.Background(), "tcp", "10.0.0.7:10250")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	text, err := io.ReadAll(conn)
	fmt.Printf("%s: %s, %v\n", conn.RemoteAddr(), text, err)
	// Output: 10.0.0.7:10250: hello from behind the tunnel, <nil>
}

// An agent decides what may be dialled through it, and ends its work politely.
func ExampleAgent() {
	var network tunneltest.Network
	l, err := network.Listen("tcp", "seed:8080")
	if err != nil {
		fmt.Println(err)
		return
	}
	server := &tunnel.Server{ID: "seed-1", AgentAuth: tunnel.FixedCluster("shoot-a")}
	go server.Serve(l)
	defer server.Close()

	kubelets, err := tunnel.ParseRule("10.0.0.0/8:10250")
	if err != nil {
		fmt.Println(err)
		return
	}
	agent := &tunnel.Agent{
		Servers:    []string{"http://seed:8080"},
		ID:         "node-1",
		Allow:      tunnel.Rules{kubelets}.Allow,
		Dial:       network.Host("node-1").Dial,
		DialTarget: greeter,
	}
	ended := make(chan error)
	go func() { ended <- agent.Run(context.Background()) }()
	await(server, "shoot-a")

	for _, target := range []string{"10.0.0.7:10250", "10.0.0.7:22"} {
		conn, err := server.Dialer("shoot-a")(context.Background(), "tcp", target)
		fmt.Println(target, "refused:", err != nil)
		if err == nil {
			conn.Close()
		}
	}
	if err := agent.Shutdown(context.Background()); err != nil {
		fmt.Println(err)
	}
	fmt.Println(<-ended)
	// Output:
	// 10.0.0.7:10250 refused: false
	// 10.0.0.7:22 refused: true
	// tunnel: agent closed
}

// Errors tell what happened, and where.
func ExampleDialError() {
	server := &tunnel.Server{AgentWait: -1} // nobody has connected to it
	defer server.Close()
	_, err := server.Dialer("shoot-a")(context.Background(), "udp", "10.0.0.7:53")

	var failed *tunnel.DialError
	if errors.As(err, &failed) {
		fmt.Println("cluster:", failed.Cluster, "target:", failed.Target, "agent:", failed.Agent != "")
	}
	fmt.Println("a mistake of the caller:", errors.Is(err, connect.ErrRequest))
	fmt.Println("no agent:", errors.Is(err, connect.ErrUnavailable))
	fmt.Println("too slow:", failed.Timeout())
	// Output:
	// cluster: shoot-a target: 10.0.0.7:53 agent: false
	// a mistake of the caller: true
	// no agent: false
	// too slow: false
}

// Networks and names open what they say, but never the agent's own host or the
// cloud's metadata, which need a rule of their own.
func ExampleRules() {
	var rules tunnel.Rules
	for _, text := range []string{"0.0.0.0/0", "127.0.0.1:9100"} {
		rule, err := tunnel.ParseRule(text)
		if err != nil {
			fmt.Println(err)
			return
		}
		rules = append(rules, rule)
	}
	for _, to := range []string{"10.0.0.7:10250", "127.0.0.1:9100", "127.0.0.1:22", "169.254.169.254:80"} {
		a := netip.MustParseAddrPort(to)
		err := rules.Allow(tunnel.Target{Host: a.Addr().String(), Port: a.Port(), Addr: a.Addr()})
		fmt.Println(to, err == nil)
	}
	// Output:
	// 10.0.0.7:10250 true
	// 127.0.0.1:9100 true
	// 127.0.0.1:22 false
	// 169.254.169.254:80 false
}

func ExampleParseRule() {
	for _, text := range []string{"10.1.2.3/8", "[2001:db8::7]:443", ".svc.cluster.local", "10.0.0.0/33"} {
		rule, err := tunnel.ParseRule(text)
		if err != nil {
			fmt.Println("bad:", err)
			continue
		}
		fmt.Println(rule)
	}
	// Output:
	// 10.0.0.0/8
	// [2001:db8::7/128]:443
	// .svc.cluster.local
	// bad: tunnel: rule "10.0.0.0/33": want CIDR, CIDR:port or host:port
}

// A Picker chooses among the agents that can take a dial. This one wants them
// near first, and falls back to the number of streams.
func ExamplePicker() {
	var near tunnel.Picker = func(target string, candidates []tunnel.Candidate) int {
		for i, c := range candidates {
			if c.Labels["zone"] == "europe-1a" {
				return i
			}
		}
		return tunnel.LeastStreams(target, candidates)
	}
	// Agents that declare the target come before all others.
	server := &tunnel.Server{Picker: tunnel.ByDestination(near)}
	i := server.Picker("10.0.0.7:10250", []tunnel.Candidate{
		{ID: "agent-1", Streams: 3},
		{ID: "agent-2", Streams: 9, Labels: map[string]string{"zone": "europe-1a"}},
	})
	fmt.Println(i)
	// Output: 1
}

// peer is what a TLS connection with a certificate for a name would show.
func peer(name, serverName string) (*tunnel.Peer, error) {
	ca, err := tunneltest.NewCA("throw-away")
	if err != nil {
		return nil, err
	}
	cert, err := ca.Issue(tunneltest.CertOptions{CommonName: name})
	if err != nil {
		return nil, err
	}
	return &tunnel.Peer{
		TLS: &tls.ConnectionState{
			ServerName:     serverName,
			VerifiedChains: [][]*x509.Certificate{{cert.TLS.Leaf, ca.Cert}},
		},
		Request: &connect.Request{Header: make(http.Header)},
	}, nil
}

// Agents belong to the cluster that their verified certificate names. With a
// certs.Pool authorities can be bound to clusters, with certs.Tokens bearer
// tokens do as well.
func ExampleAgentAuth() {
	auth := tunnel.AgentAuth(nil, nil)
	for _, name := range []string{"shoot-a", "*"} {
		p, err := peer(name, "")
		if err != nil {
			fmt.Println(err)
			return
		}
		id, err := auth(p)
		fmt.Printf("%q is of cluster %q, refused: %v\n", name, id.Cluster, err != nil)
	}
	// Output:
	// "shoot-a" is of cluster "shoot-a", refused: false
	// "*" is of cluster "", refused: true
}

// Clients select a cluster, and their certificate must allow it.
func ExampleClientAuth() {
	auth := tunnel.ClientAuth(nil, tunnel.SelectHeader("X-Cluster"))
	p, err := peer("shoot-a", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, cluster := range []string{"shoot-a", "shoot-b"} {
		p.Request.Header.Set("X-Cluster", cluster)
		id, err := auth(p)
		fmt.Printf("wants %s, gets %q, refused: %v\n", cluster, id.Cluster, err != nil)
	}
	// Output:
	// wants shoot-a, gets "shoot-a", refused: false
	// wants shoot-b, gets "", refused: true
}

// An operator reaches any cluster, by the server name of the TLS handshake.
func ExampleSelectSNI() {
	auth := tunnel.ClientAuth(nil, tunnel.SelectSNI("tunnel.example"))
	p, err := peer("*", "shoot-b.tunnel.example")
	if err != nil {
		fmt.Println(err)
		return
	}
	id, err := auth(p)
	fmt.Println(id.Cluster, err)
	// Output: shoot-b <nil>
}

// A Unix socket belongs to one cluster; its file permissions say who may use
// it. Agents have a port of their own.
func ExampleFixedCluster() {
	var network tunneltest.Network
	socket, err := network.Listen("unix", "/run/shoot-a.sock")
	if err != nil {
		fmt.Println(err)
		return
	}
	server := &tunnel.Server{AgentWait: -1}
	defer server.Close()
	go server.ServeDoor(socket, tunnel.Door{Clients: tunnel.FixedCluster("shoot-a"), NoAgents: true})

	client := &connect.Dialer{Network: "unix", Address: "/run/shoot-a.sock", Forward: network.Dial}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err = client.DialContext(ctx, "tcp", "10.0.0.7:10250")
	fmt.Println("refused for want of an agent:", errors.Is(err, connect.ErrUnavailable))
	// Output: refused for want of an agent: true
}

// The old direction: the agent listens, and the seed dials it.
func ExampleServer_DialAgent() {
	var network tunneltest.Network
	l, err := network.Listen("tcp", "shoot:4314")
	if err != nil {
		fmt.Println(err)
		return
	}
	agent := &tunnel.Agent{
		DialTarget: greeter,
		AuthServer: func(*tunnel.Peer) error { return nil }, // by default: a verified certificate
	}
	go agent.Serve(context.Background(), l)
	defer agent.Close()

	server := new(tunnel.Server)
	defer server.Close()
	go server.DialAgent(context.Background(), "shoot-a", func(ctx context.Context) (net.Conn, error) {
		return network.Dial(ctx, "tcp", "shoot:4314") // through TLS that has verified the agent
	}, nil)
	await(server, "shoot-a")
	conn, err := server.Dialer("shoot-a")(context.Background(), "tcp", "10.0.0.7:10250")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	text, err := io.ReadAll(conn)
	fmt.Println(string(text), err)
	// Output: hello from behind the tunnel <nil>
}
